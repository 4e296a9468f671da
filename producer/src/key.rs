//! What an API key is: how one is made, written and checked, and what it allows. It knows neither HTTP nor the store.

use std::fmt::{self, Write};

use clap::ValueEnum;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// What scanners for secrets find a key by.
const PREFIX: &str = "errand_";
const ID_BYTES: usize = 6;
const MAX_ID: usize = 32;

/// What a key allows. `Admin` allows everything, and to see everybody's tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Scope {
    /// Submit tasks, end and forget one's own, and see what that answers
    Submit,
    /// Look at one's own tasks, and at what each task takes
    Read,
    /// All of it for everybody's tasks, queues, workers, counts and metrics
    Admin,
}

impl Scope {
    /// Every scope.
    pub const ALL: [Self; 3] = [Self::Submit, Self::Read, Self::Admin];

    /// The word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Submit => "submit",
            Self::Read => "read",
            Self::Admin => "admin",
        }
    }
}

/// SHA-256 of a key's secret.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretHash(pub [u8; 32]);

impl SecretHash {
    /// Whether this is the hash of that secret. Takes as long when it is not.
    #[must_use]
    pub fn is_of(&self, secret: &Secret) -> bool {
        self.0.ct_eq(&secret.hash().0).into()
    }
}

/// A key's 256 bits.
pub struct Secret([u8; 32]);

impl Secret {
    /// What of it is kept.
    #[must_use]
    pub fn hash(&self) -> SecretHash {
        SecretHash(Sha256::digest(self.0).into())
    }
}

/// A key as its holder has it, `errand_<id>_<secret>`.
pub struct Token {
    /// Names the key.
    pub id: String,
    /// Proves it.
    pub secret: Secret,
}

impl Token {
    /// A new one from the system's random numbers.
    ///
    /// # Errors
    /// The system has none.
    pub fn generate() -> Result<Self, getrandom::Error> {
        let (mut id, mut secret) = ([0; ID_BYTES], [0; 32]);
        getrandom::fill(&mut id)?;
        getrandom::fill(&mut secret)?;
        Ok(Self { id: hex(&id), secret: Secret(secret) })
    }

    /// Reads one; `None` for what is none.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (id, secret) = text.strip_prefix(PREFIX)?.split_once('_')?;
        let is_id = (1..=MAX_ID).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_alphanumeric());
        is_id.then_some(Self { id: id.to_owned(), secret: Secret(bytes(secret)?) })
    }

    /// The whole key, secret included.
    #[must_use]
    pub fn reveal(&self) -> String {
        format!("{PREFIX}{}_{}", self.id, hex(&self.secret.0))
    }
}

/// Without the secret, which must not get into a log.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("id", &self.id).finish_non_exhaustive()
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

fn bytes(hex: &str) -> Option<[u8; 32]> {
    let digit = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    let pairs = hex.as_bytes().chunks(2).map(|pair| match pair {
        [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
        _ => None,
    });
    pairs.collect::<Option<Vec<u8>>>()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_back_and_proves_itself_only() {
        let (one, other) = (Token::generate().unwrap(), Token::generate().unwrap());
        let read = Token::parse(&one.reveal()).unwrap();
        assert_eq!((&read.id, one.reveal().len()), (&one.id, 7 + 12 + 1 + 64));
        assert!(one.secret.hash().is_of(&read.secret) && !one.secret.hash().is_of(&other.secret));
    }

    #[test]
    fn what_is_no_key_is_none() {
        let hex = "ab".repeat(32);
        assert!(Token::parse(&format!("errand_id_{hex}")).is_some());
        let long = "i".repeat(33);
        for bad in [
            String::new(),
            hex.clone(),
            format!("errand_{hex}"),
            format!("errand__{hex}"),
            format!("errand_{long}_{hex}"),
            format!("errand_i d_{hex}"),
            format!("errand_id_{}", &hex[1..]),
            format!("errand_id_{hex}0"),
            format!("errand_id_{}", hex.to_uppercase()),
            format!("errand_id_{}é", &hex[2..]),
            format!("Errand_id_{hex}"),
        ] {
            assert!(Token::parse(&bad).is_none(), "{bad}");
        }
    }
}
