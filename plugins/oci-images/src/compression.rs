//! Layers and archives come plain, as gzip or as zstd; their first bytes say which, whatever a media type claims.

use std::io::{self, BufRead, BufReader, Read};

use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::{
    BlockDecodingStrategy, FrameDecoder,
    errors::{FrameDecoderError, ReadFrameHeaderError},
};

const BUFFER_BYTES: usize = 128 << 10;

/// Whether what begins like this has to be decompressed.
pub(crate) fn is_packed(start: &[u8]) -> bool {
    matches!(start, [0x1f, 0x8b, ..] | [0x28, 0xb5, 0x2f, 0xfd, ..])
}

/// Reads `inner` decompressed. All of `inner` has been read once this ends.
///
/// # Errors
/// Of `inner`, or for a kind of compression that is none of the three.
pub(crate) fn decompressed<'a>(inner: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut inner = BufReader::with_capacity(BUFFER_BYTES, inner);
    match inner.fill_buf()? {
        [0x1f, 0x8b, ..] => Ok(Box::new(MultiGzDecoder::new(inner))),
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Ok(Box::new(Zstd::new(inner))),
        [b'B', b'Z', b'h', ..] => Err(bad("bzip2 is not read, only gzip and zstd are")),
        [0xfd, b'7', b'z', b'X', b'Z', ..] => Err(bad("xz is not read, only gzip and zstd are")),
        _ => Ok(Box::new(inner)),
    }
}

fn bad(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// All frames of a zstd stream: the decoder reads one, and some writers make many with others to skip between.
struct Zstd<R> {
    inner: R,
    decoder: FrameDecoder,
    in_frame: bool,
}

impl<R: BufRead> Zstd<R> {
    fn new(inner: R) -> Self {
        Self { inner, decoder: FrameDecoder::new(), in_frame: false }
    }

    /// Whether there is one.
    fn next_frame(&mut self) -> io::Result<bool> {
        while !self.inner.fill_buf()?.is_empty() {
            let Err(error) = self.decoder.init(&mut self.inner) else {
                return Ok(true);
            };
            let FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame { length, .. }) =
                error
            else {
                return Err(bad(error));
            };
            let skipped = io::copy(&mut (&mut self.inner).take(length.into()), &mut io::sink())?;
            if skipped != u64::from(length) {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(false)
    }
}

impl<R: BufRead> Read for Zstd<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            if !self.in_frame && !self.next_frame()? {
                return Ok(0);
            }
            self.in_frame = true;
            while self.decoder.can_collect() == 0 && !self.decoder.is_finished() {
                let one = BlockDecodingStrategy::UptoBlocks(1);
                self.decoder.decode_blocks(&mut self.inner, one).map_err(bad)?;
            }
            let count = self.decoder.read(buffer)?;
            if count > 0 {
                return Ok(count);
            }
            self.in_frame = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::{Compression, write::GzEncoder};
    use ruzstd::encoding::{CompressionLevel, compress_to_vec};

    use super::*;

    fn read(content: &[u8]) -> io::Result<Vec<u8>> {
        let mut read = Vec::new();
        decompressed(content)?.read_to_end(&mut read)?;
        Ok(read)
    }

    fn gzip(content: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(content: &[u8]) -> Vec<u8> {
        compress_to_vec(content, CompressionLevel::Fastest)
    }

    #[test]
    fn each_kind_is_recognised() {
        let content = b"content ".repeat(100_000);
        for packed in [content.clone(), gzip(&content), zstd(&content)] {
            assert!(read(&packed).unwrap() == content);
        }
        assert_eq!(read(b"").unwrap(), b"");
    }

    #[test]
    fn several_members_and_frames_are_one_stream() {
        assert_eq!(read(&[gzip(b"a"), gzip(b"b")].concat()).unwrap(), b"ab");
        let skippable = [&[0x5a, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"xyz"].concat();
        let frames = [skippable.clone(), zstd(b"a"), skippable.clone(), zstd(b"b"), skippable].concat();
        assert_eq!(read(&frames).unwrap(), b"ab");
    }

    #[test]
    fn what_is_cut_off_or_of_another_kind_fails() {
        let content = b"content".repeat(1000);
        for packed in [gzip(&content), zstd(&content)] {
            assert!(read(&packed[..packed.len() - 9]).is_err());
            assert!(read(&[&packed[..], b"tail of noise"].concat()).is_err());
        }
        assert!(read(&[0x5a, 0x2a, 0x4d, 0x18, 200, 0, 0, 0, 1]).is_err());
        assert!(read(b"BZh91AY").unwrap_err().to_string().contains("bzip2"));
        assert!(read(b"\xfd7zXZ\0").unwrap_err().to_string().contains("xz"));
    }
}
