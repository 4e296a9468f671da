//! `resize_image` over HTTP: good images by every way in and out, and images that are made to hurt.

use std::io::{Cursor, Write};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use e2e::client::is_terminal;
use e2e::{Pair, Web, broker};
use flate2::Compression;
use flate2::write::ZlibEncoder;
use image::{DynamicImage, GenericImageView, ImageFormat, Rgb, RgbImage};
use serde_json::{Value, json};

use crate::life::SOON;

/// Of the worker. The largest of the images would take 16 GiB.
const MAX_RSS: u64 = 300 << 20;
const MIB: u64 = 1 << 20;

fn photo(width: u32, height: u32, format: ImageFormat) -> Result<Vec<u8>> {
    let shade = |at: u32| u8::try_from(at % 256).unwrap_or_default();
    let pixels = RgbImage::from_fn(width, height, |x, y| Rgb([shade(x), shade(y), shade(x * y)]));
    let mut bytes = Cursor::new(Vec::new());
    DynamicImage::ImageRgb8(pixels).write_to(&mut bytes, format)?;
    Ok(bytes.into_inner())
}

/// A PNG of RGB that says how large it is, and whose pixels are that many zeros, compressed.
fn png(width: u32, height: u32, zeros: usize) -> Result<Vec<u8>> {
    let header = [&width.to_be_bytes(), &height.to_be_bytes(), [8, 2, 0, 0, 0].as_slice()].concat();
    let mut pixels = ZlibEncoder::new(Vec::new(), Compression::fast());
    let block = vec![0; 1 << 20];
    for at in (0..zeros).step_by(block.len()) {
        pixels.write_all(&block[..block.len().min(zeros - at)])?;
    }
    let pixels = pixels.finish()?;
    let chunks = [chunk(*b"IHDR", &header)?, chunk(*b"IDAT", &pixels)?, chunk(*b"IEND", &[])?];
    Ok([b"\x89PNG\r\n\x1a\n".as_slice(), &chunks.concat()].concat())
}

fn chunk(kind: [u8; 4], content: &[u8]) -> Result<Vec<u8>> {
    let mut crc = flate2::Crc::new();
    crc.update(&kind);
    crc.update(content);
    let length = u32::try_from(content.len())?;
    Ok([&length.to_be_bytes(), kind.as_slice(), content, &crc.sum().to_be_bytes()].concat())
}

/// Runs `resize_image` once: how it ended, and the most memory that the worker was seen to take meanwhile.
async fn resize(pair: &Pair, kwargs: Value) -> Result<(Value, u64)> {
    let wish = json!({"task": "resize_image", "kwargs": kwargs, "retry": {"max_retries": 0}});
    let id = pair.client().accepted(&wish).await?;
    let start = std::time::Instant::now();
    let mut most = 0;
    loop {
        most = most.max(pair.consumers[0].rss()?);
        let task = pair.client().get(&id).await?;
        if is_terminal(&task) {
            return Ok((task, most));
        }
        ensure!(start.elapsed() < SOON, "still {task:#}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn an_image_is_resized_by_every_way_in_and_out() -> Result<()> {
    let (web, artifacts) = (Web::start().await?, tempfile::tempdir()?);
    let photo = photo(400, 300, ImageFormat::Jpeg)?;
    web.put("/photo", photo.clone());
    let pair = Pair::on(broker::shared().await?).consumer_env("FETCH_ALLOW", "127.0.0.1");
    let pair = pair.consumer_env("ARTIFACTS_DIR", &artifacts.path().display().to_string()).start().await?;
    let inline = BASE64.encode(&photo);
    for source in [web.url("/photo"), format!("data:image/jpeg;base64,{inline}"), inline] {
        for (format, name) in [(ImageFormat::Png, "png"), (ImageFormat::WebP, "webp"), (ImageFormat::Gif, "gif")] {
            let kwargs = json!({"source": source, "width": 100, "height": 100, "format": name});
            let (ended, _) = resize(&pair, kwargs).await?;
            assert_eq!(ended["state"], "SUCCESS", "{ended:#}");
            let data = BASE64.decode(ended["result"]["data"].as_str().context("no data")?)?;
            let read = image::load_from_memory_with_format(&data, format)?;
            assert_eq!((read.dimensions(), &ended["result"]["height"]), ((100, 75), &json!(75)));
            assert_eq!(ended["result"]["bytes"], data.len());
        }
    }
    let kwargs = json!({"source": web.url("/photo"), "width": 800, "height": 600, "format": "jpeg", "file": "big.jpg"});
    let (ended, _) = resize(&pair, kwargs).await?;
    assert_eq!(ended["result"]["file"], "big.jpg", "{ended:#}");
    assert_eq!(image::open(artifacts.path().join("big.jpg"))?.dimensions(), (800, 600));
    assert_eq!(std::fs::read_dir(artifacts.path())?.count(), 1, "no temporary file stays");
    pair.stop().await
}

#[tokio::test]
async fn images_made_to_hurt_fail_by_their_type_and_take_no_memory() -> Result<()> {
    let web = Web::start().await?;
    let pair = Pair::on(broker::shared().await?).consumer_env("FETCH_ALLOW", "127.0.0.1").start().await?;
    let jpeg = photo(400, 300, ImageFormat::Jpeg)?;
    let mut wide_gif = photo(4, 4, ImageFormat::Gif)?;
    wide_gif[6..10].fill(0xff);
    let cases = [
        ("50,000 × 50,000 pixels by its header", png(50_000, 50_000, 1000)?, "ImageTooLarge"),
        ("a GIF of 65,535 × 65,535 by its header", wide_gif, "ImageTooLarge"),
        ("the first half of a JPEG", jpeg[..jpeg.len() / 2].to_vec(), "InvalidImage"),
        ("49 megapixels by its header, and data for a few", png(7000, 7000, 100_000)?, "InvalidImage"),
        ("text", b"no image".to_vec(), "InvalidImage"),
    ];
    for (what, image, kind) in cases {
        web.put("/image", image.clone());
        for source in [BASE64.encode(&image), web.url("/image")] {
            let (ended, rss) = resize(&pair, json!({"source": source, "width": 100, "height": 100})).await?;
            println!("{what}: {} in a worker of {} MiB", ended["error"], rss / MIB);
            assert_eq!((&ended["state"], &ended["error"]["type"]), (&json!("FAILURE"), &json!(kind)), "{what}");
            assert!(rss < MAX_RSS, "{what}: the worker took {} MiB", rss / MIB);
        }
    }
    // What unpacks to 300 MiB and says that it is 64 × 64 is read as far as that goes.
    web.put("/bomb", png(64, 64, 300 << 20)?);
    let (ended, rss) = resize(&pair, json!({"source": web.url("/bomb"), "width": 32, "height": 32})).await?;
    println!("a bomb of 300 MiB: {} in a worker of {} MiB", ended["state"], rss / MIB);
    assert_eq!((&ended["state"], &ended["result"]["width"]), (&json!("SUCCESS"), &json!(32)), "{ended:#}");
    assert!(rss < MAX_RSS, "the bomb took {} MiB", rss / MIB);
    for (path, kind) in [("/status/404", "HttpStatus"), ("/status/503", "HttpStatus"), ("/told", "ResponseTooLarge")] {
        let (ended, _) = resize(&pair, json!({"source": web.url(path), "width": 32, "height": 32})).await?;
        assert_eq!((&ended["state"], &ended["error"]["type"]), (&json!("FAILURE"), &json!(kind)), "{path}");
    }
    pair.stop().await
}
