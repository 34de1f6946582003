//! YAML with the place of every key and value, as its reader on the other side takes it: PyYAML's
//! `SafeLoader` (cloud-init), or `sigs.k8s.io/yaml` (a cluster). It reports what that reader refuses,
//! and what it drops without a word.
//!
//! The events come from a parser of YAML 1.2; what differs in YAML 1.1 and in the readers (tabs, what is
//! a number or a boolean, merge keys, repeated anchors) is added here. Nothing here knows what the
//! documents are about.

mod scalar;

use std::collections::hash_map::Entry::{Occupied, Vacant};
use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use granit_parser::{Event, Parser, ScalarStyle, ScanError, Span, StructureStyle, Tag};

/// Who reads the text in the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dialect {
    /// PyYAML's `SafeLoader`.
    CloudInit,
    /// `sigs.k8s.io/yaml`, which turns YAML into JSON, and JSON itself.
    Kubernetes,
}

impl Dialect {
    const fn reader(self) -> &'static str {
        match self {
            Self::CloudInit => "cloud-init",
            Self::Kubernetes => "Kubernetes",
        }
    }
}

/// A place in a text, both counted from 1, the column in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mark {
    /// The line on which it begins.
    pub line: usize,
    /// The column of its first character.
    pub column: usize,
    /// How many characters of that line belong to it.
    pub width: usize,
    /// The line on which it ends.
    pub last_line: usize,
}

impl Mark {
    /// One character.
    pub const fn at(line: usize, column: usize) -> Self {
        Self { line, column, width: 1, last_line: line }
    }
}

/// A value and where it stands.
#[derive(Debug)]
pub struct Node {
    /// Where it stands.
    pub mark: Mark,
    /// What it is.
    pub value: Value,
    /// How many nodes it is with all aliases written out.
    weight: usize,
}

/// What the reader makes of a node.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Nothing, `~` or `null`.
    Null,
    /// A boolean, which `yes` is too.
    Bool(bool),
    /// The value, or `None` if it is beyond 128 bits.
    Int(Option<i128>),
    /// Any other number.
    Float(f64),
    /// Text.
    Text(Text),
    /// A date or time that stands without quotes.
    Timestamp,
    /// `!!binary`: bytes, for which cloud-init takes text as well.
    Binary,
    /// A sequence.
    List(Vec<Rc<Node>>),
    /// A mapping, in the order of the text; what merge keys brought comes first.
    Map(Vec<Entry>),
    /// `!!set`, `!!omap` and `!!pairs`: values of Python that no schema speaks of.
    Other,
    /// What only a template engine can tell.
    Unknown,
    /// `<<` as a key; it never stays in a document.
    Merge,
}

/// Text, and how it was written.
#[derive(Debug, Clone, PartialEq)]
pub struct Text {
    /// Without its quotes.
    pub text: String,
    /// Written as a block with `|`: its lines are those of the file.
    pub is_literal: bool,
}

/// A key with its value.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The key.
    pub key: Rc<Node>,
    /// Its value.
    pub value: Rc<Node>,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.key.value == other.key.value && self.value.value == other.value.value
    }
}

impl PartialEq for Node {
    fn eq(&self, other: &Self) -> bool {
        self.value == other.value
    }
}

impl Node {
    /// The value under a key; of a repeated key the last.
    pub fn get(&self, key: &str) -> Option<&Self> {
        self.entry(key).map(|entry| &*entry.value)
    }

    /// The same with the key.
    pub fn entry(&self, key: &str) -> Option<&Entry> {
        self.entries().iter().rev().find(|entry| entry.key.text() == Some(key))
    }

    /// The keys and values of a mapping, and of anything else none.
    pub fn entries(&self) -> &[Entry] {
        match &self.value {
            Value::Map(entries) => entries,
            _ => &[],
        }
    }

    /// The items of a list, and of anything else none.
    pub fn items(&self) -> &[Rc<Self>] {
        match &self.value {
            Value::List(items) => items,
            _ => &[],
        }
    }

    /// The text of a scalar that is text.
    pub fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Text(text) => Some(&text.text),
            _ => None,
        }
    }

    /// How people call this type of value.
    pub const fn kind(&self) -> &'static str {
        match &self.value {
            Value::Null => "nothing",
            Value::Bool(_) => "a boolean",
            Value::Int(_) | Value::Float(_) => "a number",
            Value::Text(_) => "text",
            Value::Timestamp => "a date",
            Value::Binary => "bytes",
            Value::List(_) => "a list",
            Value::Map(_) => "a mapping",
            Value::Other => "a value of Python",
            Value::Unknown => "a template",
            Value::Merge => "a merge key",
        }
    }
}

/// Why a text is no YAML, or what the reader drops of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flaw {
    /// Where.
    pub mark: Mark,
    /// Of which kind it is.
    pub kind: FlawKind,
    /// What is wrong.
    pub what: String,
    /// What helps.
    pub hint: Option<String>,
}

/// The kinds of flaws that have a code of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FlawKind {
    /// The reader does not read it.
    Syntax,
    /// A tab where the reader allows none.
    Tab,
    /// A key that stands twice, of which the last counts.
    Duplicate,
}

impl Flaw {
    fn new(mark: Mark, what: impl Into<String>) -> Self {
        Self { mark, kind: FlawKind::Syntax, what: what.into(), hint: None }
    }

    fn with_hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }
}

/// A document that can be read.
#[derive(Debug, Default)]
pub struct Document {
    /// What stands in it; `None` if it is empty.
    pub root: Option<Rc<Node>>,
    /// What was dropped.
    pub flaws: Vec<Flaw>,
}

/// Deepest nesting. PyYAML recurses and gives up somewhere below 1000; people stay below 20.
const DEPTH_MAX: usize = 100;

/// Most nodes with all aliases written out: what cloud-init would walk. A cloud-config of 1 MiB has
/// about 100 000.
const NODES_MAX: usize = 1 << 20;

/// Stands in for what a template engine will put there; see [`Value::Unknown`]. A private-use
/// character, so that it takes one column.
pub const PLACEHOLDER: char = '\u{e000}';

/// Reads a text of one document as cloud-init does.
pub fn document(text: &str) -> Result<Document, Flaw> {
    let documents = parse(text, Dialect::CloudInit)?;
    Ok(documents.into_iter().next().unwrap_or_default())
}

/// Reads all documents of a text as Kubernetes' tools do.
pub fn documents(text: &str) -> Result<Vec<Document>, Flaw> {
    parse(text, Dialect::Kubernetes)
}

fn parse(text: &str, dialect: Dialect) -> Result<Vec<Document>, Flaw> {
    printable(text)?;
    let mut options = granit_parser::options! {
        emit_anchor_events: true,
        block_scalar_eof_without_line_feed: true,
        flow_nesting_limit: DEPTH_MAX,
        block_nesting_limit: DEPTH_MAX,
    };
    options.set_emit_comments(true);
    let mut builder = Builder::new(dialect);
    let mut opaque = Vec::new();
    for event in Parser::new_from_str_with_options(text, options) {
        let (event, span) = event.map_err(|error| syntax(text, &error))?;
        if let Some(range) = may_hold_tabs(&event, &span) {
            opaque.push(range);
        }
        if builder.expects_key() && is_missing(text, &event, &span) {
            let flaw = Flaw::new(mark(&span), "a `:` without a key before it");
            return Err(flaw.with_hint("quote a text that begins with `:`"));
        }
        builder.take(event, &span)?;
    }
    // The other reader takes tabs between brackets, and so JSON with tabs.
    if dialect == Dialect::CloudInit {
        refuse_tabs(text, &opaque)?;
    }
    Ok(builder.documents)
}

/// True of nothing before a `:`. PyYAML takes that for a key only behind a `?`.
fn is_missing(text: &str, event: &Event<'_>, span: &Span) -> bool {
    matches!(event, Event::Scalar(_, ScalarStyle::Plain, 0, None))
        && span.start.index() == span.end.index()
        && span.start.byte_offset().is_some_and(|at| text[at..].starts_with(':'))
}

/// The characters of a quoted or block scalar or comment, in which tabs are allowed.
fn may_hold_tabs(event: &Event<'_>, span: &Span) -> Option<(usize, usize)> {
    let may = match event {
        Event::Comment(..) => true,
        Event::Scalar(_, style, ..) => *style != ScalarStyle::Plain,
        _ => false,
    };
    may.then(|| (span.start.index(), span.end.index()))
}

/// PyYAML takes no tab for a space between words (its scanner's `scan_to_next_token`).
fn refuse_tabs(text: &str, opaque: &[(usize, usize)]) -> Result<(), Flaw> {
    if !text.contains('\t') {
        return Ok(());
    }
    let (mut line, mut column) = (1, 1);
    // Comments may be told after what follows them.
    let mut ranges = opaque.to_vec();
    ranges.sort_unstable();
    let mut ranges = ranges.into_iter().peekable();
    for (index, c) in text.chars().enumerate() {
        while ranges.next_if(|(_, end)| *end <= index).is_some() {}
        let is_free = ranges.peek().is_none_or(|(start, _)| index < *start);
        // A line of nothing but white space is no token, and is passed over.
        if c == '\t' && is_free {
            return Err(tab(Mark::at(line, column)));
        }
        (line, column) = if c == '\n' { (line + 1, 1) } else { (line, column + 1) };
    }
    Ok(())
}

fn tab(mark: Mark) -> Flaw {
    Flaw {
        mark,
        kind: FlawKind::Tab,
        what: "a tab, which YAML does not take for a space".to_owned(),
        hint: Some("use spaces".to_owned()),
    }
}

/// PyYAML's reader takes printable characters only (YAML 1.1 §4.1.1).
fn printable(text: &str) -> Result<(), Flaw> {
    let is_printable = |c: char| {
        let is_ascii = matches!(c, '\t' | '\n' | '\r' | ' '..='~');
        is_ascii || matches!(c, '\u{85}' | '\u{a0}'..='\u{fffd}' | '\u{10000}'..)
    };
    let Some((at, c)) = text.char_indices().find(|(_, c)| !is_printable(*c)) else { return Ok(()) };
    let line = text[..at].matches('\n').count() + 1;
    let begin = text[..at].rfind('\n').map_or(0, |end| end + 1);
    let mark = Mark::at(line, text[begin..at].chars().count() + 1);
    let what = format!("the character U+{:04X}, which YAML does not allow", u32::from(c));
    Err(Flaw::new(mark, what).with_hint("write it as an escape in a text with double quotes"))
}

fn mark(span: &Span) -> Mark {
    let (start, end) = (&span.start, &span.end);
    let width = match end.line() == start.line() {
        true => end.col().saturating_sub(start.col()).max(1),
        false => 1,
    };
    Mark { line: start.line(), column: start.col() + 1, width, last_line: end.line() }
}

/// The parser's error, with what people usually meant.
fn syntax(text: &str, error: &ScanError) -> Flaw {
    let at = error.marker();
    let mark = Mark::at(at.line().max(1), at.col() + 1);
    let line = text.lines().nth(mark.line - 1).unwrap_or_default();
    let blank = line.len() - line.trim_start().len();
    if let Some(column) = line[..blank].chars().position(|c| c == '\t') {
        return tab(Mark { column: column + 1, ..mark });
    }
    // A tab on the next line ends a text that goes on there, as the parser sees it.
    let next = text.lines().zip(1..).skip(mark.line).find(|(line, _)| !line.trim().is_empty());
    if let (true, Some((next, number))) = (error.info().contains("found a tab"), next) {
        let blank = next.len() - next.trim_start().len();
        if let Some(at) = next[..blank].find('\t') {
            return tab(Mark::at(number, at + 1));
        }
    }
    let flaw = Flaw::new(mark, lower(&error.info()));
    match remedy(line) {
        Some(hint) => flaw.with_hint(hint),
        None => flaw,
    }
}

/// Messages begin in lower case here.
pub fn lower(message: &str) -> String {
    let mut chars = message.chars();
    let first = chars.next().map(|c| c.to_ascii_lowercase());
    first.into_iter().chain(chars).collect::<String>().trim_end_matches('.').to_owned()
}

fn remedy(line: &str) -> Option<&'static str> {
    let line = line.trim_start().trim_start_matches("- ");
    let value = line.split_once(": ").map_or(line, |(_, value)| value.trim_start());
    if value.starts_with(['@', '`', '%', '*', '&', '!']) {
        return Some("put the value into quotes");
    }
    if value.starts_with('"') && value.contains('\\') {
        return Some("a backslash begins an escape in double quotes: use single quotes");
    }
    if !value.starts_with(['"', '\'', '[', '{', '|', '>']) && value.contains(": ") {
        return Some("a text with `: ` in it needs quotes");
    }
    None
}

/// A collection that is not at its end yet.
struct Open {
    mark: Mark,
    /// Written as `[…]` or `{…}`.
    is_flow: bool,
    anchor: usize,
    tag: Option<String>,
    weight: usize,
    body: Body,
}

enum Body {
    List(Vec<Rc<Node>>),
    Map { entries: Vec<Entry>, key: Option<Rc<Node>> },
}

struct Builder {
    dialect: Dialect,
    documents: Vec<Document>,
    open: Vec<Open>,
    anchors: HashMap<usize, Rc<Node>>,
    names: HashSet<String>,
    /// Of all that was read, with all aliases written out.
    weight: usize,
}

impl Builder {
    fn new(dialect: Dialect) -> Self {
        Self {
            dialect,
            documents: Vec::new(),
            open: Vec::new(),
            anchors: HashMap::new(),
            names: HashSet::new(),
            weight: 0,
        }
    }

    /// The document that is being read.
    fn current(&mut self) -> &mut Document {
        self.documents.last_mut().expect("the parser begins a document before what is in it")
    }

    fn take(&mut self, event: Event<'_>, span: &Span) -> Result<(), Flaw> {
        let mark = mark(span);
        match event {
            Event::DocumentStart(..) => return self.document(mark),
            Event::Alias(anchor) => return self.alias(anchor, mark),
            Event::Anchor(_, name)
                if self.dialect == Dialect::CloudInit
                    && !self.names.insert(name.clone().into_owned()) =>
            {
                return Err(Flaw::new(mark, "the same anchor stands twice")
                    .with_hint("give each its own name"));
            }
            Event::Scalar(text, style, anchor, tag) => {
                if style == ScalarStyle::Plain && self.dialect == Dialect::CloudInit {
                    self.refuse_question(&text, mark)?;
                }
                let value = scalar::resolve(self.dialect, &text, style, named(tag).as_deref())
                    .map_err(|(what, hint)| Flaw { hint, ..Flaw::new(mark, what) })?;
                let node = Rc::new(Node { mark, value, weight: 1 });
                self.define(anchor, &node);
                return self.put(node);
            }
            Event::SequenceStart(style, anchor, tag) => {
                return self.begin(mark, style, anchor, named(tag), Body::List(Vec::new()));
            }
            Event::MappingStart(style, anchor, tag) => {
                let body = Body::Map { entries: Vec::new(), key: None };
                return self.begin(mark, style, anchor, named(tag), body);
            }
            Event::SequenceEnd | Event::MappingEnd => return self.end(),
            _ => {}
        }
        Ok(())
    }

    /// Between brackets, PyYAML ends a text without quotes before a `?`, and expects no key there.
    fn refuse_question(&self, text: &str, mark: Mark) -> Result<(), Flaw> {
        let Some(at) = text.find('?').filter(|_| self.open.iter().any(|open| open.is_flow)) else {
            return Ok(());
        };
        let mark = match mark.last_line == mark.line {
            true => Mark { width: 1, column: mark.column + text[..at].chars().count(), ..mark },
            false => mark,
        };
        let what = "a `?` in a text without quotes, which ends the text between `[…]` and `{…}`";
        Err(Flaw::new(mark, what).with_hint("quote the text"))
    }

    fn expects_key(&self) -> bool {
        let open = self.open.last().map(|open| &open.body);
        matches!(open, Some(Body::Map { key: None, .. }))
    }

    fn document(&mut self, mark: Mark) -> Result<(), Flaw> {
        if !self.documents.is_empty() && self.dialect == Dialect::CloudInit {
            let flaw = Flaw::new(mark, "a second document, where cloud-init expects one");
            return Err(flaw.with_hint("remove the line `---`, or make two files of it"));
        }
        self.anchors.clear();
        self.documents.push(Document::default());
        Ok(())
    }

    fn begin(
        &mut self,
        mark: Mark,
        style: StructureStyle,
        anchor: usize,
        tag: Option<String>,
        body: Body,
    ) -> Result<(), Flaw> {
        if self.open.len() >= DEPTH_MAX {
            return Err(Flaw::new(mark, format!("nested more than {DEPTH_MAX} levels deep")));
        }
        let is_flow = style == StructureStyle::Flow;
        self.open.push(Open { mark, is_flow, anchor, tag, weight: 1, body });
        Ok(())
    }

    fn alias(&mut self, anchor: usize, mark: Mark) -> Result<(), Flaw> {
        let Some(node) = self.anchors.get(&anchor) else {
            return Err(Flaw::new(mark, "an alias for what encloses it"));
        };
        let node = Rc::clone(node);
        self.put(node)
    }

    fn define(&mut self, anchor: usize, node: &Rc<Node>) {
        if anchor != 0 {
            self.anchors.insert(anchor, Rc::clone(node));
        }
    }

    fn end(&mut self) -> Result<(), Flaw> {
        let open = self.open.pop().expect("the parser ends only what it began");
        let (mark, weight) = (open.mark, open.weight);
        let value = match open.body {
            Body::List(items) => Value::List(items),
            Body::Map { entries, .. } => Value::Map(self.flatten(entries)?),
        };
        let value = scalar::tagged(self.dialect, value, open.tag.as_deref())
            .map_err(|(what, hint)| Flaw { hint, ..Flaw::new(mark, what) })?;
        let node = Rc::new(Node { mark, value, weight });
        self.define(open.anchor, &node);
        // What it weighs was counted on the way.
        self.weight -= weight - 1;
        self.put(node)
    }

    fn put(&mut self, node: Rc<Node>) -> Result<(), Flaw> {
        self.weight = self.weight.saturating_add(node.weight);
        if self.weight > NODES_MAX {
            let what = format!("more than {NODES_MAX} values with all aliases written out");
            return Err(Flaw::new(node.mark, what));
        }
        let Some(open) = self.open.last_mut() else {
            self.current().root = Some(value(node)?);
            return Ok(());
        };
        open.weight += node.weight;
        match &mut open.body {
            Body::List(items) => items.push(value(node)?),
            Body::Map { entries, key } => match key.take() {
                Some(key) => {
                    let value = if key.value == Value::Merge { node } else { value(node)? };
                    entries.push(Entry { key, value });
                }
                None => *key = Some(self.dialect.key(node)?),
            },
        }
        Ok(())
    }

    /// Puts what merge keys (`<<`) lead to before the mapping's own keys, as SafeLoader does, and
    /// says which keys stand twice.
    fn flatten(&mut self, entries: Vec<Entry>) -> Result<Vec<Entry>, Flaw> {
        let mut merged = Vec::new();
        let mut own: Vec<Entry> = Vec::with_capacity(entries.len());
        let mut seen: HashMap<String, usize> = HashMap::new();
        let flaws = &mut self.current().flaws;
        for entry in entries {
            if entry.key.value == Value::Merge {
                merged.extend(merge(&entry)?);
                continue;
            }
            match seen.entry(identity(&entry.key.value)) {
                Occupied(found) => {
                    let first = &mut own[*found.get()];
                    flaws.push(duplicate(&entry.key, first.key.mark.line));
                    // As a dictionary of Python does, with its first key and its last value.
                    if first.key.value == entry.key.value {
                        *first = entry;
                    } else {
                        first.value = entry.value;
                    }
                }
                Vacant(place) => {
                    place.insert(own.len());
                    own.push(entry);
                }
            }
        }
        merged.retain(|entry: &Entry| !seen.contains_key(&identity(&entry.key.value)));
        merged.append(&mut own);
        Ok(merged)
    }
}

fn duplicate(key: &Node, first: usize) -> Flaw {
    let name = key.text().unwrap_or("the same");
    Flaw {
        mark: key.mark,
        kind: FlawKind::Duplicate,
        what: format!("the key `{name}` stands twice: what line {first} says is lost"),
        hint: Some("join the two, or remove one".to_owned()),
    }
}

/// A value, which `<<` is not.
fn value(node: Rc<Node>) -> Result<Rc<Node>, Flaw> {
    if node.value == Value::Merge {
        return Err(Flaw::new(node.mark, "`<<` without quotes is a merge key, and no value"));
    }
    Ok(node)
}

/// What tells keys apart. For Python `1`, `1.0` and `True` are one.
fn identity(value: &Value) -> String {
    match value {
        Value::Bool(bool) => identity(&Value::Int(Some(i128::from(*bool)))),
        Value::Float(float) if float.fract() == 0.0 => identity(&Value::Int(Some(*float as i128))),
        _ => format!("{value:?}"),
    }
}

/// The keys that a merge key brings, of several mappings the first one's first.
fn merge(entry: &Entry) -> Result<Vec<Entry>, Flaw> {
    let mut merged: Vec<Entry> = Vec::new();
    let mut sources: Vec<&Node> = Vec::new();
    match &entry.value.value {
        Value::Map(_) => sources.push(&entry.value),
        Value::List(items) => sources.extend(items.iter().map(|item| &**item)),
        _ => sources.push(&entry.value),
    }
    let mut seen = HashSet::new();
    for source in sources {
        let Value::Map(entries) = &source.value else {
            let what = format!("expected a mapping behind `<<`, got {}", source.kind());
            return Err(Flaw::new(source.mark, what));
        };
        let new = entries.iter().filter(|entry| seen.insert(identity(&entry.key.value)));
        merged.extend(new.cloned());
    }
    Ok(merged)
}

impl Dialect {
    /// What a node is as a key. Python's dictionaries take no list and no dictionary for one; JSON has
    /// nothing but text, as which a number or a boolean ends there.
    fn key(self, key: Rc<Node>) -> Result<Rc<Node>, Flaw> {
        if matches!(key.value, Value::List(_) | Value::Map(_) | Value::Other) {
            let what = format!("{} as a key, which {} does not read", key.kind(), self.reader());
            return Err(Flaw::new(key.mark, what).with_hint(match self {
                Self::CloudInit => {
                    "quote a value that begins with `{` or `[`; for `{{ … }}` of Jinja, the first line \
                     has to be `## template: jinja`"
                }
                Self::Kubernetes => {
                    "quote a value that begins with `{` or `[`; a template has to be filled in before"
                }
            }));
        }
        let text = match (self, &key.value) {
            (Self::Kubernetes, Value::Bool(value)) => value.to_string(),
            (Self::Kubernetes, Value::Int(Some(value))) => value.to_string(),
            (Self::Kubernetes, Value::Float(value)) => value.to_string(),
            (Self::Kubernetes, Value::Null) => "null".to_owned(),
            _ => return Ok(key),
        };
        let value = Value::Text(Text { text, is_literal: false });
        Ok(Rc::new(Node { mark: key.mark, value, weight: key.weight }))
    }
}

/// The tag in full, as `tag:yaml.org,2002:str`.
fn named(tag: Option<std::borrow::Cow<'_, Tag>>) -> Option<String> {
    tag.map(|tag| format!("{}{}", tag.handle(), tag.suffix()))
}
#[cfg(test)]
mod tests;
