//! A decoded image: within bounds when it is read, resized, encoded.

use std::io::Cursor;

use image::codecs::gif::GifEncoder;
use image::codecs::jpeg::JpegEncoder;
use image::imageops::FilterType;
use image::metadata::Orientation;
use image::{
    DynamicImage, Frame, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits, Rgb, RgbImage, RgbaImage,
};

use super::{Format, jpeg};
use crate::handler::TaskError;

/// Of the source.
const MAX_PIXELS: u64 = 50_000_000;
/// Of the decoded source, and of what decoding allocates beside it as far as decoders count that.
const MAX_DECODED: u64 = 256 << 20;
/// Of the result. Resizing needs up to 32 bytes for each.
const MAX_RESIZED: u64 = 16_000_000;
const JPEG_QUALITY: u8 = 85;
/// Colours are chosen from one pixel in so many.
const GIF_SPEED: i32 = 10;

/// 8 bits a channel: gray, RGB, or RGBA with the colours multiplied by their alpha, as resampling needs them.
#[derive(Debug)]
pub(super) struct Picture {
    pixels: DynamicImage,
    orientation: Orientation,
}

impl Picture {
    /// Decodes it, unless its header says that it is too large.
    pub(super) fn decode(encoded: &[u8]) -> Result<Self, TaskError> {
        let mut reader = ImageReader::new(Cursor::new(encoded)).with_guessed_format()?;
        let format = reader.format().ok_or_else(|| invalid("neither PNG, JPEG, GIF nor WebP"))?;
        let mut limits = Limits::no_limits();
        limits.max_alloc = Some(MAX_DECODED);
        reader.limits(limits.clone());
        let mut decoder = reader.into_decoder().map_err(refusal)?;
        check_size(&decoder)?;
        limits.reserve(decoder.total_bytes()).map_err(refusal)?;
        decoder.set_limits(limits).map_err(refusal)?;
        if format == ImageFormat::Jpeg && !jpeg::is_complete(encoded) {
            return Err(invalid("a JPEG that is cut off"));
        }
        // Metadata that cannot be read costs the photo its turn only.
        let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
        let pixels = DynamicImage::from_decoder(decoder).map_err(refusal)?;
        Ok(Self { pixels: eight_bits(pixels), orientation })
    }

    /// As large as fits within the box, and upright.
    pub(super) fn fit_within(self, width: u32, height: u32) -> Result<Self, TaskError> {
        let Self { mut pixels, orientation } = self;
        let (box_width, box_height) = if is_turned(orientation) { (height, width) } else { (width, height) };
        let (width, height) = fit((pixels.width(), pixels.height()), (box_width, box_height));
        if u64::from(width) * u64::from(height) > MAX_RESIZED {
            let message = format!("the result would have {width} × {height} pixels, more than {MAX_RESIZED} in all");
            return Err(TaskError::fail("ImageTooLarge", message));
        }
        // The good filter keeps a copy in floats, of the source's width. What is at least halved is averaged first.
        let (wide, high) = (pixels.width().min(2 * width), pixels.height().min(2 * height));
        if (wide, high) != (pixels.width(), pixels.height()) {
            pixels = pixels.thumbnail_exact(wide, high);
        }
        pixels = pixels.resize_exact(width, height, FilterType::Lanczos3);
        pixels.apply_orientation(orientation);
        Ok(Self { pixels, orientation: Orientation::NoTransforms })
    }

    pub(super) fn dimensions(&self) -> (u32, u32) {
        (self.pixels.width(), self.pixels.height())
    }

    pub(super) fn encode(self, format: Format) -> Result<Vec<u8>, TaskError> {
        let mut encoded = Cursor::new(Vec::new());
        let pixels = match self.pixels {
            DynamicImage::ImageRgba8(pixels) if format == Format::Jpeg => DynamicImage::ImageRgb8(on_white(&pixels)),
            DynamicImage::ImageRgba8(mut pixels) => {
                divide_by_alpha(&mut pixels);
                DynamicImage::ImageRgba8(pixels)
            }
            opaque => opaque,
        };
        let written = match format {
            Format::Png => pixels.write_to(&mut encoded, ImageFormat::Png),
            Format::Webp => pixels.write_to(&mut encoded, ImageFormat::WebP),
            Format::Jpeg => pixels.write_with_encoder(JpegEncoder::new_with_quality(&mut encoded, JPEG_QUALITY)),
            Format::Gif => {
                let frame = Frame::new(pixels.into_rgba8());
                GifEncoder::new_with_speed(&mut encoded, GIF_SPEED).encode_frame(frame)
            }
        };
        written.map_err(|error| TaskError::fail("EncodingFailed", error.to_string()))?;
        Ok(encoded.into_inner())
    }
}

fn check_size(decoder: &impl ImageDecoder) -> Result<(), TaskError> {
    let ((width, height), bytes) = (decoder.dimensions(), decoder.total_bytes());
    if width == 0 || height == 0 {
        return Err(invalid("it has no pixels"));
    }
    if u64::from(width) * u64::from(height) > MAX_PIXELS || bytes > MAX_DECODED {
        let message = format!(
            "{width} × {height} pixels, {bytes} bytes decoded: more than {MAX_PIXELS} pixels or {MAX_DECODED} bytes"
        );
        return Err(TaskError::fail("ImageTooLarge", message));
    }
    Ok(())
}

fn invalid(message: &str) -> TaskError {
    TaskError::fail("InvalidImage", format!("the source is no image that can be read: {message}"))
}

fn refusal(error: ImageError) -> TaskError {
    match error {
        ImageError::Limits(_) => TaskError::fail("ImageTooLarge", format!("decoding needs over {MAX_DECODED} bytes")),
        other => invalid(&other.to_string()),
    }
}

const fn is_turned(orientation: Orientation) -> bool {
    use Orientation::{Rotate90, Rotate90FlipH, Rotate270, Rotate270FlipH};
    matches!(orientation, Rotate90 | Rotate270 | Rotate90FlipH | Rotate270FlipH)
}

/// The largest size of the same proportions within the box, of at least one pixel.
fn fit((width, height): (u32, u32), (box_width, box_height): (u32, u32)) -> (u32, u32) {
    // side * to / from, rounded; it is at most the box's side.
    let scale = |side: u32, to: u32, from: u32| {
        let (side, to, from) = (u64::from(side), u64::from(to), u64::from(from));
        u32::try_from((2 * side * to + from) / (2 * from)).unwrap_or(u32::MAX).max(1)
    };
    if u64::from(box_width) * u64::from(height) <= u64::from(box_height) * u64::from(width) {
        (box_width, scale(height, box_width, width))
    } else {
        (scale(width, box_height, height), box_height)
    }
}

fn eight_bits(pixels: DynamicImage) -> DynamicImage {
    if pixels.color().has_alpha() {
        let mut pixels = pixels.into_rgba8();
        multiply_by_alpha(&mut pixels);
        DynamicImage::ImageRgba8(pixels)
    } else if pixels.color().has_color() {
        DynamicImage::ImageRgb8(pixels.into_rgb8())
    } else {
        DynamicImage::ImageLuma8(pixels.into_luma8())
    }
}

/// Otherwise the colour that a transparent pixel happens to have would bleed into its neighbours.
fn multiply_by_alpha(pixels: &mut RgbaImage) {
    for pixel in pixels.pixels_mut() {
        let [colour @ .., alpha] = &mut pixel.0;
        for channel in colour {
            *channel = ratio(u16::from(*channel) * u16::from(*alpha), 255);
        }
    }
}

fn divide_by_alpha(pixels: &mut RgbaImage) {
    for pixel in pixels.pixels_mut() {
        let [colour @ .., alpha @ 1..=254] = &mut pixel.0 else { continue };
        for channel in colour {
            *channel = ratio(u16::from(*channel) * 255, u16::from(*alpha));
        }
    }
}

fn on_white(pixels: &RgbaImage) -> RgbImage {
    RgbImage::from_fn(pixels.width(), pixels.height(), |x, y| {
        let [red, green, blue, alpha] = pixels.get_pixel(x, y).0;
        Rgb([red, green, blue].map(|channel| channel.saturating_add(255 - alpha)))
    })
}

/// Rounded, and at most 255: resampling may leave a colour brighter than its alpha.
fn ratio(numerator: u16, denominator: u16) -> u8 {
    let rounded = (u32::from(numerator) + u32::from(denominator) / 2) / u32::from(denominator);
    u8::try_from(rounded).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::Rgba;

    #[test]
    fn the_result_touches_the_box_and_keeps_its_proportions() {
        for (source, within, fitted) in [
            ((400, 300), (200, 200), (200, 150)),
            ((300, 400), (200, 200), (150, 200)),
            ((40, 30), (200, 300), (200, 150)),
            ((100, 100), (50, 50), (50, 50)),
            ((3, 2), (100, 100), (100, 67)),
            ((10_000, 1), (10, 10), (10, 1)),
            ((1, 65_535), (10_000, 10_000), (1, 10_000)),
            ((50_000_000, 1), (10_000, 10_000), (10_000, 1)),
        ] {
            assert_eq!(fit(source, within), fitted, "{source:?} within {within:?}");
        }
    }

    #[test]
    fn a_transparent_pixels_colour_does_not_bleed() {
        let pixels = RgbaImage::from_fn(8, 8, |x, _| if x < 4 { Rgba([255, 0, 0, 255]) } else { Rgba([0, 255, 0, 0]) });
        let picture =
            Picture { pixels: eight_bits(DynamicImage::ImageRgba8(pixels)), orientation: Orientation::NoTransforms };
        let mut pixels = picture.fit_within(3, 3).unwrap().pixels.into_rgba8();
        divide_by_alpha(&mut pixels);
        for pixel in pixels.pixels().filter(|pixel| pixel[3] > 0) {
            assert!(pixel[0] >= 250 && pixel[1] == 0, "{pixel:?}");
        }
    }

    #[test]
    fn alpha_comes_back_as_it_was() {
        let original = RgbaImage::from_fn(2, 256, |x, y| {
            let alpha = u8::try_from(y).unwrap();
            Rgba(if x == 0 { [alpha, 0, 255, 255] } else { [255, 0, 255, alpha] })
        });
        let mut pixels = original.clone();
        multiply_by_alpha(&mut pixels);
        divide_by_alpha(&mut pixels);
        assert!(pixels.pixels().zip(original.pixels()).all(|(after, before)| before[3] == 0 || after == before));
    }

    #[test]
    fn what_is_transparent_becomes_white() {
        let pixels = RgbaImage::from_pixel(1, 1, Rgba([0, 0, 0, 0]));
        assert_eq!(on_white(&pixels).get_pixel(0, 0).0, [255; 3]);
    }

    #[test]
    fn a_photo_is_turned_and_then_fits() {
        let pixels = DynamicImage::ImageRgb8(RgbImage::new(40, 20));
        let picture = Picture { pixels, orientation: Orientation::Rotate90 };
        assert_eq!(picture.fit_within(10, 100).unwrap().dimensions(), (10, 20));
    }

    #[test]
    fn the_result_is_bounded() {
        let picture = Picture { pixels: DynamicImage::new_luma8(2, 2), orientation: Orientation::NoTransforms };
        let error = picture.fit_within(10_000, 10_000).unwrap_err();
        assert_eq!(error.error().kind, "ImageTooLarge");
    }
}
