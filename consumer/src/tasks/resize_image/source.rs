//! The bytes of an image, wherever they are.

use std::time::Duration;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use fetch::Fetcher;

use crate::context::Context;
use crate::handler::TaskError;
use crate::tasks::remote;

const MAX_BYTES: usize = 32 << 20;
const LONGEST: Duration = Duration::from_mins(1);

/// With and without padding: encoders differ.
const LENIENT: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
const BASE64: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, LENIENT);
const BASE64_URL: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, LENIENT);

/// The bytes that the source stands for.
pub(super) async fn read(source: &str, fetcher: &Fetcher, ctx: &Context) -> Result<Vec<u8>, TaskError> {
    if let Some(inline) = strip_data(source) {
        return decode(inline?);
    }
    if !remote::is_url(source) {
        return decode(source);
    }
    let response = remote::get(fetcher, source, LONGEST, ctx).await?;
    response.bytes(MAX_BYTES).await.map(Into::into).map_err(|error| remote::task_error(&error))
}

/// What follows `data:…;base64,`, `None` when it is not a data URL.
fn strip_data(source: &str) -> Option<Result<&str, TaskError>> {
    let scheme = source.get(..5)?;
    if !scheme.eq_ignore_ascii_case("data:") {
        return None;
    }
    let (media_type, data) = source[5..].split_once(',').unwrap_or_default();
    let (_, encoding) = media_type.rsplit_once(';').unwrap_or_default();
    Some(if encoding.eq_ignore_ascii_case("base64") {
        Ok(data)
    } else {
        Err(TaskError::fail("InvalidImage", "a data: URL must be base64: data:image/png;base64,…"))
    })
}

/// Either alphabet, in lines or not.
fn decode(text: &str) -> Result<Vec<u8>, TaskError> {
    let text: String = text.split_ascii_whitespace().collect();
    let engine = if text.contains(['-', '_']) { BASE64_URL } else { BASE64 };
    engine.decode(text).map_err(|error| {
        TaskError::fail("InvalidImage", format!("the source is neither an http or https URL nor base64: {error}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_read_as_encoders_write_it() {
        for text in ["+/8=", "+/8", "-_8=", "-_8", "+/\n8=\r\n", " +/8= "] {
            assert_eq!(decode(text).unwrap(), [0xfb, 0xff], "{text}");
        }
    }

    #[test]
    fn a_data_url_must_be_base64() {
        assert_eq!(strip_data("DATA:image/png;BASE64,AAAA").unwrap().unwrap(), "AAAA");
        assert_eq!(strip_data("data:;base64,AAAA").unwrap().unwrap(), "AAAA");
        for other in ["AAAA", "http://a/", "é", ""] {
            assert!(strip_data(other).is_none(), "{other}");
        }
        for refused in ["data:", "data:,AAAA", "data:image/png,AAAA", "data:image/png;base64"] {
            assert_eq!(strip_data(refused).unwrap().unwrap_err().error().kind, "InvalidImage", "{refused}");
        }
    }

    #[test]
    fn what_is_not_base64_is_no_image() {
        for text in ["not base64!", "A", "/etc/passwd.png", "AAAA=AAAA"] {
            assert_eq!(decode(text).unwrap_err().error().kind, "InvalidImage", "{text}");
        }
    }
}
