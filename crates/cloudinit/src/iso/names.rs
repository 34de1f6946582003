//! Names as the two trees spell them. Real names that do not fit are changed, and numbered where
//! that makes two of them equal; Rock Ridge carries the real ones.

use std::collections::{HashMap, HashSet};

use super::Naming;
use crate::tree::Target;

/// Most characters of an identifier of the primary tree (ECMA-119 §10.2, level 2): 30 for a file,
/// without the dot, and 31 for a directory. Shorter here, to leave the extension whole.
const STEM_MAX: usize = 26;
const EXTENSION_MAX: usize = 3;

/// Most characters of an identifier of the Joliet tree (Joliet specification, "Directory
/// identifiers").
const JOLIET_MAX: usize = 64;

/// Characters that Joliet does not allow in names.
const JOLIET_FORBIDDEN: &str = "*/:;?\\";

/// Identifiers for the names of one directory, in the order of the names: each unique, files
/// without version.
pub(super) fn ids(naming: Naming, listing: &[(&str, Target)]) -> Vec<Vec<u8>> {
    let mut taken = Taken::default();
    let spell = |(name, target): &(&str, Target)| match naming {
        Naming::Primary => taken.primary(name, matches!(target, Target::Directory(_))),
        Naming::Joliet => taken.joliet(name),
    };
    listing.iter().map(spell).collect()
}

/// The identifiers that a directory has already, and the last number tried for each.
#[derive(Default)]
struct Taken {
    ids: HashSet<Vec<u8>>,
    numbers: HashMap<Vec<u8>, usize>,
}

impl Taken {
    fn primary(&mut self, name: &str, is_directory: bool) -> Vec<u8> {
        let (stem, extension) = match name.rsplit_once('.') {
            Some((stem, extension)) if !is_directory && !stem.is_empty() => (stem, extension),
            _ => (name, ""),
        };
        let stem = d_characters(stem, STEM_MAX);
        let mut tail = Vec::new();
        if !is_directory {
            tail.push(b'.');
            tail.extend(d_characters(extension, EXTENSION_MAX));
        }
        self.unique(&stem, &tail, |number| format!("_{number}").into_bytes(), STEM_MAX)
    }

    fn joliet(&mut self, name: &str) -> Vec<u8> {
        let is_allowed = |c: &char| !JOLIET_FORBIDDEN.contains(*c) && c.len_utf16() == 1;
        let name = name.chars().map(|c| if is_allowed(&c) { c } else { '_' });
        let ucs2 = |text: &mut dyn Iterator<Item = char>| -> Vec<u8> {
            text.flat_map(|c| (c as u16).to_be_bytes()).collect()
        };
        let stem = ucs2(&mut name.take(JOLIET_MAX));
        self.unique(&stem, &[], |n| ucs2(&mut format!("_{n}").chars()), 2 * JOLIET_MAX)
    }

    /// `stem` and `tail`, or the first number between them that makes something new. The stem gives
    /// way to the number so that both together have at most `stem_max` bytes.
    fn unique(
        &mut self,
        stem: &[u8],
        tail: &[u8],
        suffix: impl Fn(usize) -> Vec<u8>,
        stem_max: usize,
    ) -> Vec<u8> {
        let plain = [stem, tail].concat();
        if self.ids.insert(plain.clone()) {
            return plain;
        }
        let number = self.numbers.entry(plain).or_default();
        loop {
            *number += 1;
            let suffix = suffix(*number);
            let stem = &stem[..stem.len().min(stem_max - suffix.len())];
            let id = [stem, &suffix, tail].concat();
            if self.ids.insert(id.clone()) {
                return id;
            }
        }
    }
}

/// The first `max` characters as d-characters (ECMA-119 §7.4.1): capitals, digits and `_`.
fn d_characters(text: &str, max: usize) -> Vec<u8> {
    let d_character = |c: char| match c {
        'A'..='Z' | '0'..='9' => c as u8,
        'a'..='z' => c.to_ascii_uppercase() as u8,
        _ => b'_',
    };
    text.chars().take(max).map(d_character).collect()
}
