//! Words that people get almost right.

/// The word that was likely meant.
pub fn near_word<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let plain = |word: &str| word.to_lowercase().replace('-', "_");
    // Short words are near to everything.
    let allowed = word.chars().count().div_ceil(4).min(3);
    let allowed = if word.len() < 4 { 0 } else { allowed };
    let word = plain(word);
    known
        .map(|known| (word_distance(&word, &plain(known)), known))
        .filter(|(distance, _)| *distance <= allowed)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, known)| known)
}

/// How many letters have to be added, removed, changed or exchanged with their neighbour to make one
/// word of the other (the restricted Damerau-Levenshtein distance).
pub fn word_distance(one: &str, other: &str) -> usize {
    const WORD_MAX: usize = 64;
    let (one, other): (Vec<char>, Vec<char>) = (one.chars().collect(), other.chars().collect());
    if one.len().max(other.len()) > WORD_MAX {
        return WORD_MAX;
    }
    let mut rows = vec![(0..=other.len()).collect::<Vec<usize>>()];
    for (i, a) in one.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, b) in other.iter().enumerate() {
            let above = &rows[i];
            let mut least = (above[j + 1] + 1).min(row[j] + 1).min(above[j] + usize::from(a != b));
            if i > 0 && j > 0 && *a == other[j - 1] && one[i - 1] == *b {
                least = least.min(rows[i - 1][j - 1] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows[one.len()][other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_with_a_slip_is_known() {
        let known = ["runStrategy", "running", "template"];
        for (word, near) in [
            ("RunStrategy", Some("runStrategy")),
            ("run-strategy", Some("runStrategy")),
            ("runing", Some("running")),
            ("tempalte", Some("template")),
            ("run", None),
            ("spec", None),
        ] {
            assert_eq!(near_word(word, known.into_iter()), near, "{word}");
        }
    }
}
