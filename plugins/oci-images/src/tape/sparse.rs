//! Files with holes: GNU's own header, and its format 1.0 within pax.

use std::io::{self, Read};

use tar::{EntryType, GnuExtSparseHeader, GnuSparseHeader, Header};

use super::{BLOCK, Entry, Input, Tape, pax::Pax, shown};
use crate::error::{Result, invalid, unreadable};

/// Pieces of one file; more would take too much memory, and no tool makes them.
const PIECES_MAX: u64 = 1 << 20;

/// A run of data in a file with holes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

impl<R: Input> Tape<R> {
    /// Completes `entry` with where its data goes.
    pub(super) fn read_sparse(&mut self, header: &Header, pax: &Pax, entry: &mut Entry) -> Result<()> {
        let bad = |why: &str| invalid(format!("{}: {why}", shown(&entry.path)));
        let pieces = match (entry.kind, pax.sparse_major) {
            (EntryType::GNUSparse, _) => {
                let gnu = header.as_gnu().ok_or_else(|| bad("a sparse file without a GNU header"))?;
                let size = gnu.real_size().map_err(|_| bad("a sparse file without a size"))?;
                let extended = gnu.is_extended();
                (size, self.gnu_map(&gnu.sparse, extended)?)
            }
            (_, Some(1)) => {
                let size = pax.sparse_size.ok_or_else(|| bad("a sparse file without a size"))?;
                (size, self.pax_map()?)
            }
            _ if pax.has_old_sparse || pax.sparse_major.is_some() => {
                return Err(bad("its sparse format is not read, only GNU's own and 1.0 are"));
            }
            _ => return Ok(()),
        };
        let (size, pieces) = pieces;
        check(&pieces, size, self.left).map_err(bad)?;
        (entry.kind, entry.size, entry.sparse) = (EntryType::Regular, size, Some(pieces));
        Ok(())
    }

    /// The header's pieces and those of the blocks that follow it, which the entry's size does not count.
    fn gnu_map(&mut self, first: &[GnuSparseHeader], mut extended: bool) -> Result<Vec<Piece>> {
        let mut pieces = Vec::new();
        add(&mut pieces, first)?;
        while extended {
            let mut more = GnuExtSparseHeader::new();
            if !self.block(more.as_mut_bytes())? {
                return Err(invalid("it is cut off within a header"));
            }
            add(&mut pieces, more.sparse())?;
            extended = more.is_extended();
        }
        Ok(pieces)
    }

    /// Decimal numbers on lines, padded to a block: how many, then offset and length of each.
    fn pax_map(&mut self) -> Result<Vec<Piece>> {
        let before = self.left;
        let count = self.number_line()?;
        if count > PIECES_MAX {
            return Err(invalid("a sparse file is of too many pieces"));
        }
        let mut pieces = Vec::new();
        for _ in 0..count {
            pieces.push(Piece { offset: self.number_line()?, length: self.number_line()? });
        }
        let padding = (before - self.left).wrapping_neg() % BLOCK as u64;
        let padded = io::copy(&mut self.take(padding), &mut io::sink());
        padded.map_err(|error| unreadable("the tar", error))?;
        Ok(pieces)
    }

    fn number_line(&mut self) -> Result<u64> {
        let mut line = Vec::new();
        for _ in 0..21 {
            let mut byte = [0];
            self.read_exact(&mut byte).map_err(|error| unreadable("the tar", error))?;
            match byte {
                [b'\n'] if !line.is_empty() => return super::pax::number(&line),
                [byte] => line.push(byte),
            }
        }
        Err(invalid("the map of a sparse file is damaged"))
    }
}

fn add(pieces: &mut Vec<Piece>, headers: &[GnuSparseHeader]) -> Result<()> {
    for header in headers.iter().filter(|header| !header.is_empty()) {
        let (Ok(offset), Ok(length)) = (header.offset(), header.length()) else {
            return Err(invalid("the map of a sparse file is damaged"));
        };
        pieces.push(Piece { offset, length });
    }
    if pieces.len() as u64 > PIECES_MAX {
        return Err(invalid("a sparse file is of too many pieces"));
    }
    Ok(())
}

/// Pieces come in order, within the file, and are all of the data.
fn check(pieces: &[Piece], size: u64, data: u64) -> std::result::Result<(), &'static str> {
    let mut end = 0;
    let mut sum = 0u64;
    for piece in pieces {
        if piece.offset < end {
            return Err("the pieces of a sparse file overlap");
        }
        end = piece.offset.checked_add(piece.length).ok_or("a piece of a sparse file has no end")?;
        sum = sum.saturating_add(piece.length);
    }
    match () {
        () if end > size || size > i64::MAX as u64 => Err("a piece of a sparse file is behind its end"),
        () if sum != data => Err("the pieces of a sparse file are not its data"),
        () => Ok(()),
    }
}
