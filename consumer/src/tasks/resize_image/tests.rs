//! The task as a worker runs it, on images that are good and bad.

use std::io::Cursor;
use std::path::Path;

use image::{DynamicImage, ImageFormat, Rgb, RgbImage, Rgba, RgbaImage};
use serde_json::{Value, json};

use super::*;
use crate::testing::TestRun;

fn photo(width: u32, height: u32) -> DynamicImage {
    let shade = |at: u32| u8::try_from(at % 256).unwrap();
    DynamicImage::ImageRgb8(RgbImage::from_fn(width, height, |x, y| Rgb([shade(x), shade(y), shade(x * y)])))
}

fn encoded(image: &DynamicImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

/// A chunk of a PNG.
fn chunk(kind: [u8; 4], content: &[u8]) -> Vec<u8> {
    let mut crc = u32::MAX;
    for byte in kind.iter().chain(content) {
        crc ^= u32::from(*byte);
        (0..8).for_each(|_| crc = if crc & 1 == 0 { crc >> 1 } else { (crc >> 1) ^ 0xedb8_8320 });
    }
    let length = u32::try_from(content.len()).unwrap();
    [&length.to_be_bytes(), kind.as_slice(), content, &(!crc).to_be_bytes()].concat()
}

/// A PNG that says of itself how large it is, and has one byte of compressed zeros.
fn png(width: u32, height: u32, depth: u8, colour: u8) -> Vec<u8> {
    let header = [&width.to_be_bytes(), &height.to_be_bytes(), [depth, colour, 0, 0, 0].as_slice()].concat();
    let zlib = [0x78, 0x9c, 0x63, 0x00, 0x00, 0x00, 0x01, 0x00, 0x01];
    [b"\x89PNG\r\n\x1a\n".as_slice(), &chunk(*b"IHDR", &header), &chunk(*b"IDAT", &zlib), &chunk(*b"IEND", b"")]
        .concat()
}

async fn resize(dir: Option<&Path>, kwargs: Value) -> Result<Value, (String, String)> {
    let settings = TaskSettings { artifacts_dir: dir.map(ToOwned::to_owned), ..TaskSettings::default() };
    let task = ResizeImage::new(&settings, settings.fetcher().unwrap()).unwrap();
    let result = TestRun::new().call(task, "[]", &kwargs.to_string()).await;
    let told = |error: TaskError| (error.error().kind.clone(), error.error().message.clone());
    Ok(serde_json::from_str(result.map_err(told)?.get()).unwrap())
}

fn within(source: &[u8], width: u32, height: u32) -> Value {
    json!({"source": BASE64.encode(source), "width": width, "height": height})
}

#[tokio::test]
async fn every_format_becomes_every_other() {
    let formats = [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP, ImageFormat::Gif];
    for from in formats {
        for (name, to) in ["png", "jpeg", "webp", "gif"].into_iter().zip(formats) {
            let mut kwargs = within(&encoded(&photo(60, 40), from), 30, 30);
            kwargs["format"] = json!(name);
            let result = resize(None, kwargs).await.unwrap();
            let data = BASE64.decode(result["data"].as_str().unwrap()).unwrap();
            let read = image::load_from_memory_with_format(&data, to).unwrap();
            assert_eq!((read.width(), read.height()), (30, 20), "{from:?} to {name}");
            let expected =
                json!({"format": name, "width": 30, "height": 20, "bytes": data.len(), "data": result["data"]});
            assert_eq!(result, expected);
        }
    }
}

#[tokio::test]
async fn transparency_stays_where_the_format_has_it() {
    let clear = DynamicImage::ImageRgba8(RgbaImage::from_pixel(8, 8, Rgba([0, 0, 0, 0])));
    for (format, pixel) in [("png", [0; 4]), ("webp", [0; 4]), ("gif", [0; 4]), ("jpg", [255; 4])] {
        let mut kwargs = within(&encoded(&clear, ImageFormat::Png), 4, 4);
        kwargs["format"] = json!(format);
        let result = resize(None, kwargs).await.unwrap();
        let data = BASE64.decode(result["data"].as_str().unwrap()).unwrap();
        let read = image::load_from_memory(&data).unwrap().into_rgba8();
        assert_eq!(read.get_pixel(2, 2).0, pixel, "{format}");
    }
}

#[tokio::test]
async fn a_photo_that_lies_on_its_side_is_turned_upright() {
    let jpeg = encoded(&photo(60, 40), ImageFormat::Jpeg);
    // One entry of a TIFF directory: the orientation (0x112) is a short (3), and it is 6.
    let exif = b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0";
    let length = u16::try_from(exif.len() + 2).unwrap().to_be_bytes();
    let turned = [&jpeg[..2], b"\xff\xe1", &length, exif, &jpeg[2..]].concat();
    let result = resize(None, within(&turned, 30, 30)).await.unwrap();
    assert_eq!((&result["width"], &result["height"]), (&json!(20), &json!(30)));
}

#[tokio::test]
async fn a_file_is_written_instead_of_data() {
    let dir = tempfile::tempdir().unwrap();
    let mut kwargs = within(&encoded(&photo(60, 40), ImageFormat::Png), 30, 30);
    kwargs["file"] = json!("thumb.png");
    let result = resize(Some(dir.path()), kwargs.clone()).await.unwrap();
    let written = std::fs::read(dir.path().join("thumb.png")).unwrap();
    let expected = json!({"format": "png", "width": 30, "height": 20, "bytes": written.len(), "file": "thumb.png"});
    assert_eq!(result, expected);
    assert_eq!(image::load_from_memory(&written).unwrap().width(), 30);
    let (kind, message) = resize(None, kwargs.clone()).await.unwrap_err();
    assert!(kind == "NotConfigured" && message.contains("ARTIFACTS_DIR"), "{message}");
    kwargs["file"] = json!("../thumb.png");
    let (kind, message) = resize(Some(dir.path()), kwargs).await.unwrap_err();
    assert!(kind == "InvalidArguments" && message.contains("`file`"), "{message}");
}

#[tokio::test]
async fn an_image_too_large_is_refused_from_its_header() {
    // Too many pixels; too many bytes for them; a side that no limit but the pixels' bounds.
    for (width, height, depth, colour) in [(50_000, 50_000, 8, 2), (6_000, 6_000, 16, 6), (1 << 30, 1, 1, 0)] {
        let (kind, message) = resize(None, within(&png(width, height, depth, colour), 10, 10)).await.unwrap_err();
        assert_eq!(kind, "ImageTooLarge", "{width} × {height}: {message}");
    }
}

#[tokio::test]
async fn what_is_no_image_is_invalid() {
    let jpeg = encoded(&photo(200, 200), ImageFormat::Jpeg);
    let png_whole = encoded(&photo(200, 200), ImageFormat::Png);
    let gif = encoded(&photo(200, 200), ImageFormat::Gif);
    let webp = encoded(&photo(200, 200), ImageFormat::WebP);
    let half = |bytes: &[u8]| bytes[..bytes.len() / 2].to_vec();
    for (what, bytes) in [
        ("nothing", Vec::new()),
        ("text", b"hello".to_vec()),
        ("half a JPEG", half(&jpeg)),
        ("a JPEG without its end", jpeg[..jpeg.len() - 2].to_vec()),
        ("a JPEG's first bytes", jpeg[..4].to_vec()),
        ("half a PNG", half(&png_whole)),
        ("a PNG with too little data", png(100, 100, 8, 2)),
        ("a PNG without pixels", png(0, 5, 8, 2)),
        ("half a GIF", half(&gif)),
        ("half a WebP", half(&webp)),
        ("a BMP", b"BM\x1a\0\0\0\0\0\0\0\x1a\0\0\0\x0c\0\0\0\x01\0\x01\0\x01\0\x18\0\0\0\0\0".to_vec()),
    ] {
        let (kind, message) = resize(None, within(&bytes, 10, 10)).await.unwrap_err();
        assert_eq!(kind, "InvalidImage", "{what}: {message}");
    }
}

#[tokio::test]
async fn sides_are_bounded() {
    for (width, height, name) in [(0, 1, "width"), (1, 10_001, "height")] {
        let (kind, message) = resize(None, within(b"", width, height)).await.unwrap_err();
        assert!(kind == "InvalidArguments" && message.contains(name), "{message}");
    }
}

#[tokio::test]
async fn a_url_that_is_not_public_is_refused() {
    for source in ["http://127.0.0.1:1/a.png", "file:///etc/passwd", "ftp://a/b"] {
        let (kind, _) = resize(None, json!({"source": source, "width": 1, "height": 1})).await.unwrap_err();
        assert_eq!(kind, "AddressRefused", "{source}");
    }
}
