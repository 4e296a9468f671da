//! Signatures as in Standard Webhooks 1: HMAC-SHA256 over the message's id, the time of the attempt and the body.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ring::hmac;

use crate::store::Secret;

/// Bytes of a secret, within the 24 to 64 that the specification allows.
const SECRET_BYTES: usize = 32;

impl Secret {
    /// A new one.
    ///
    /// # Errors
    /// The system gives no random bytes.
    pub fn fresh() -> Result<Self, getrandom::Error> {
        let mut bytes = vec![0; SECRET_BYTES];
        getrandom::fill(&mut bytes)?;
        Ok(Self(bytes))
    }

    /// As receivers are given it.
    #[must_use]
    pub fn shown(&self) -> String {
        format!("whsec_{}", BASE64.encode(&self.0))
    }
}

/// The value of `webhook-signature`: one signature a secret, so that receivers may know the old or the new one.
pub(super) fn sign(secrets: &[Secret], id: &str, timestamp: i64, body: &str) -> String {
    let content = format!("{id}.{timestamp}.{body}");
    let one = |Secret(secret): &Secret| {
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
        format!("v1,{}", BASE64.encode(hmac::sign(&key, content.as_bytes())))
    };
    secrets.iter().map(one).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(text: &str) -> Secret {
        Secret(BASE64.decode(text.strip_prefix("whsec_").unwrap()).unwrap())
    }

    /// The vector that the specification's own libraries are tested with.
    #[test]
    fn a_signature_is_that_of_the_specification() {
        let secret = secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw");
        let body = r#"{"test": 2432232314}"#;
        let signature = sign(&[secret], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, body);
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn every_secret_signs_and_none_is_like_another() {
        let (one, other) = (Secret::fresh().unwrap(), Secret::fresh().unwrap());
        assert!(one != other && secret(&one.shown()) == one);
        let both = sign(&[one.clone(), other.clone()], "msg_a", 1, "{}");
        let each = [sign(&[one], "msg_a", 1, "{}"), sign(&[other], "msg_a", 1, "{}")];
        assert_eq!(both, each.join(" "));
    }
}
