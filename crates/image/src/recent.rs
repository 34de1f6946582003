//! The few values that were used last, of those that are dear to make again.

/// Values by their keys, the latest used last. For so few that looking at each is cheap.
#[derive(Debug)]
pub(crate) struct Recent<K, T> {
    entries: Vec<(K, T)>,
    max: usize,
}

impl<K: PartialEq, T> Recent<K, T> {
    /// Keeps up to `max` values, at least one.
    pub(crate) const fn new(max: usize) -> Self {
        Self { entries: Vec::new(), max }
    }

    pub(crate) fn get(&mut self, key: &K) -> Option<&T> {
        let index = self.entries.iter().position(|(at, _)| at == key)?;
        self.entries[index..].rotate_left(1);
        self.entries.last().map(|(_, value)| value)
    }

    /// Makes room for `value` by giving up the one that was not used for longest.
    pub(crate) fn put(&mut self, key: K, value: T) {
        if self.entries.len() == self.max {
            self.entries.remove(0);
        }
        self.entries.push((key, value));
    }
}
