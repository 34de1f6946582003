//! The schemas that cloud-init publishes, held against a tree of YAML.
//!
//! An interpreter of the twenty-odd keywords of draft 4 that these schemas use, with cloud-init's own
//! (`deprecated`, `changed`). A general validator would know more keywords and less of what is wanted
//! here: of several branches the one that the user meant, and the place of the key at fault. A test
//! sees to it that no schema uses a keyword that is not known here.

mod json;

use std::sync::LazyLock;

use regex_lite::Regex;

pub(super) use json::Json;

use bootyard_yaml::{Entry, Mark, Node, Value};

/// cloud-init's schemas.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Schema {
    CloudConfig,
    NetworkV1,
    NetworkV2,
}

static CLOUD_CONFIG: LazyLock<Json> =
    LazyLock::new(|| Json::parse(include_str!("../../schemas/schema-cloud-config-v1.json")));
static NETWORK_V1: LazyLock<Json> =
    LazyLock::new(|| Json::parse(include_str!("../../schemas/schema-network-config-v1.json")));
static NETWORK_V2: LazyLock<Json> =
    LazyLock::new(|| Json::parse(include_str!("../../schemas/schema-network-config-v2.json")));

impl Schema {
    pub(super) fn root(self) -> &'static Json {
        match self {
            Self::CloudConfig => &CLOUD_CONFIG,
            Self::NetworkV1 => &NETWORK_V1,
            Self::NetworkV2 => &NETWORK_V2,
        }
    }
}

/// One thing that a schema has against a document.
#[derive(Debug, Clone)]
pub(super) struct Problem {
    pub(super) mark: Mark,
    /// Where in the document, such as `users[1].passwd`.
    pub(super) path: String,
    pub(super) what: What,
    /// How many steps deep it is.
    depth: usize,
}

/// What a schema can have against a value.
#[derive(Debug, Clone)]
pub(super) enum What {
    /// The mapping takes no such key; these it takes.
    UnknownKey { key: String, known: Vec<&'static str> },
    /// A key that is no text.
    KeyType { got: &'static str },
    /// The types that it takes, by the schema's words.
    Type { expected: Vec<&'static str>, got: &'static str },
    /// The values that it takes.
    Value { expected: Vec<String>, got: String },
    /// The keys of which at least one has to be there.
    MissingKey { keys: Vec<&'static str> },
    /// The keys that exclude each other.
    TooManyKeys { keys: Vec<&'static str> },
    /// A text that is not built as it has to be.
    Pattern { pattern: &'static str },
    /// Fewer or more items, keys, characters, or a smaller or larger number; `unit` is which.
    Range { expected: String, unit: &'static str },
    /// An item that stands twice.
    Repeated,
    /// A value that the schema excludes, or that it takes in two ways.
    Refused,
    /// A key or value that cloud-init wants to be rid of.
    Deprecated { version: &'static str, description: &'static str },
}

impl What {
    const fn is_error(&self) -> bool {
        !matches!(self, Self::Deprecated { .. })
    }
}

/// Everything that the schema has against the document.
pub(super) fn check(schema: Schema, document: &Node) -> Vec<Problem> {
    let mut walk = Walk::new(schema);
    walk.check(schema.root(), document, document.mark);
    sorted(walk.found)
}

/// The same for a network configuration, which may stand under `network:`. Which of the two forms is
/// meant is plain to see, and not left to the schema's `oneOf`, which would speak of the other one.
pub(super) fn check_network(schema: Schema, document: &Node) -> Vec<Problem> {
    let name = match schema {
        Schema::NetworkV1 => "#/$defs/network_config_version1",
        _ => "#/$defs/network_config_version2",
    };
    let mut walk = Walk::new(schema);
    let Some(plain) = walk.root.find(name) else { return Vec::new() };
    match document.entry("network") {
        None => walk.check(plain, document, document.mark),
        Some(network) => {
            walk.check_entry(plain, "network", network);
            for Entry { key, .. } in document.entries() {
                let Some(name) = key.text().filter(|name| *name != "network") else { continue };
                let what = What::UnknownKey { key: name.to_owned(), known: vec!["network"] };
                walk.within(Step::Key(name.to_owned()), |walk| walk.problem(key.mark, what));
            }
        }
    }
    sorted(walk.found)
}

fn sorted(mut found: Vec<Problem>) -> Vec<Problem> {
    // A value of the wrong type is none of the allowed ones either, which need not be said.
    let mistyped: Vec<Mark> = marks_of(&found, |what| matches!(what, What::Type { .. }));
    found.retain(|p| !(matches!(p.what, What::Value { .. }) && mistyped.contains(&p.mark)));
    // `allOf` may look at one thing twice.
    found.sort_by(|a, b| (a.mark, &a.path).cmp(&(b.mark, &b.path)));
    found.dedup_by(|a, b| {
        a.mark == b.mark && a.path == b.path && format!("{:?}", a.what) == format!("{:?}", b.what)
    });
    found
}

fn marks_of(found: &[Problem], is_meant: impl Fn(&What) -> bool) -> Vec<Mark> {
    found.iter().filter(|problem| is_meant(&problem.what)).map(|problem| problem.mark).collect()
}

/// A step from a value to one within it.
#[derive(Debug, Clone)]
enum Step {
    Key(String),
    Item(usize),
}

/// Most comparisons of a value with a schema. Documents of people take some thousands; aliases can
/// make a small file ask for more than any machine can do.
const STEPS_MAX: usize = 4 << 20;

struct Walk {
    root: &'static Json,
    path: Vec<Step>,
    found: Vec<Problem>,
    steps: usize,
}

impl Walk {
    fn new(schema: Schema) -> Self {
        Self { root: schema.root(), path: Vec::new(), found: Vec::new(), steps: 0 }
    }

    fn check(&mut self, schema: &'static Json, node: &Node, mark: Mark) {
        self.steps += 1;
        if self.steps > STEPS_MAX || node.value == Value::Unknown {
            return;
        }
        for (keyword, rule) in schema.entries() {
            match *keyword {
                "$ref" => {
                    if let Some(target) = rule.text().and_then(|name| self.root.find(name)) {
                        self.check(target, node, mark);
                    }
                }
                "type" => self.check_type(rule, node, mark),
                "enum" => self.check_enum(rule, node, mark),
                "allOf" => rule.items().iter().for_each(|schema| self.check(schema, node, mark)),
                "anyOf" => self.check_any(rule, node, mark),
                "oneOf" => self.check_one(rule, node, mark),
                "not" => self.check_not(rule, node, mark),
                "deprecated" => self.check_deprecated("deprecated", schema, mark),
                "changed" => self.check_deprecated("changed", schema, mark),
                _ => self.check_content(keyword, rule, schema, node, mark),
            }
        }
    }

    /// The keywords that speak of one type, and say nothing of others.
    fn check_content(
        &mut self,
        keyword: &str,
        rule: &'static Json,
        schema: &'static Json,
        node: &Node,
        mark: Mark,
    ) {
        match (&node.value, keyword) {
            (Value::Map(entries), "properties") => self.check_properties(rule, entries),
            (Value::Map(entries), "patternProperties") => self.check_patterns(rule, entries),
            (Value::Map(entries), "additionalProperties") => {
                self.check_additional(rule, schema, entries);
            }
            (Value::Map(_), "required") => self.check_required(rule, node, mark),
            (Value::Map(entries), "minProperties") => {
                self.at_least(rule, entries.len(), "key", mark);
            }
            (Value::List(items), "items") => {
                for (number, item) in items.iter().enumerate() {
                    self.within(Step::Item(number), |walk| walk.check(rule, item, item.mark));
                }
            }
            (Value::List(items), "minItems") => self.at_least(rule, items.len(), "item", mark),
            (Value::List(items), "maxItems") => self.at_most(rule, items.len(), "item", mark),
            (Value::List(items), "uniqueItems") => self.check_unique(items),
            (Value::Text(text), "pattern") => self.check_pattern(rule, &text.text, mark),
            (Value::Text(text), "maxLength") => {
                self.at_most(rule, text.text.chars().count(), "character", mark);
            }
            (Value::Text(text), "format") if rule.text() == Some("date") => {
                self.check_date(&text.text, mark);
            }
            (Value::Int(_) | Value::Float(_), "minimum" | "maximum") => {
                self.check_limit(keyword, rule, &node.value, mark);
            }
            _ => {}
        }
    }

    fn within(&mut self, step: Step, check: impl FnOnce(&mut Self)) {
        self.path.push(step);
        check(self);
        self.path.pop();
    }

    fn problem(&mut self, mark: Mark, what: What) {
        if self.found.len() >= super::FINDINGS_MAX {
            return;
        }
        let (path, depth) = (path_text(&self.path), self.path.len());
        self.found.push(Problem { mark, path, what, depth });
    }

    /// What a schema would have against a value.
    fn tried(&mut self, schema: &'static Json, node: &Node, mark: Mark) -> Vec<Problem> {
        let before = std::mem::take(&mut self.found);
        self.check(schema, node, mark);
        std::mem::replace(&mut self.found, before)
    }

    fn check_type(&mut self, rule: &'static Json, node: &Node, mark: Mark) {
        let expected = rule.texts();
        if !expected.iter().any(|name| is_type(&node.value, name)) {
            self.problem(mark, What::Type { expected, got: node.kind() });
        }
    }

    fn check_enum(&mut self, rule: &'static Json, node: &Node, mark: Mark) {
        if rule.items().iter().any(|allowed| allowed.equals(&node.value)) || rule.items().is_empty()
        {
            return;
        }
        let expected = rule.items().iter().map(Json::shown).collect();
        let got = match &node.value {
            Value::Text(text) => format!("`{}`", shortened(&text.text)),
            Value::Int(Some(int)) => format!("`{int}`"),
            Value::Bool(bool) => format!("`{bool}`"),
            _ => node.kind().to_owned(),
        };
        self.problem(mark, What::Value { expected, got });
    }

    fn check_any(&mut self, rule: &'static Json, node: &Node, mark: Mark) {
        let mut branches = Vec::new();
        for schema in rule.items() {
            let problems = self.tried(schema, node, mark);
            if !problems.iter().any(|problem| problem.what.is_error()) {
                self.found.extend(problems);
                return;
            }
            branches.push((schema, problems));
        }
        let meant = self.meant(branches, node, mark);
        self.found.extend(meant);
    }

    fn check_one(&mut self, rule: &'static Json, node: &Node, mark: Mark) {
        let mut failed = Vec::new();
        let mut passed = Vec::new();
        for schema in rule.items() {
            let problems = self.tried(schema, node, mark);
            if problems.iter().any(|problem| problem.what.is_error()) {
                failed.push((schema, problems));
            } else {
                passed.push((schema, problems));
            }
        }
        match passed.len() {
            0 => {
                let meant = self.meant(failed, node, mark);
                self.found.extend(meant);
            }
            1 => self.found.extend(passed.swap_remove(0).1),
            _ => {
                let keys = passed.iter().flat_map(|(schema, _)| schema.get("required"));
                let keys: Vec<&str> = keys.flat_map(Json::texts).collect();
                let what = match keys.is_empty() {
                    true => What::Refused,
                    false => What::TooManyKeys { keys },
                };
                self.problem(mark, what);
            }
        }
    }

    /// What to say when no branch fits: what the branch has against the value that the user most
    /// likely meant.
    fn meant(
        &self,
        branches: Vec<(&'static Json, Vec<Problem>)>,
        node: &Node,
        mark: Mark,
    ) -> Vec<Problem> {
        let depth = self.path.len();
        let is_here = |problem: &Problem| problem.depth == depth && problem.mark == mark;
        let is_scalar = !matches!(node.value, Value::List(_) | Value::Map(_));
        // A list is no nearer to one of some words than to text.
        let is_type = |what: &What| {
            matches!(what, What::Type { .. }) || (!is_scalar && matches!(what, What::Value { .. }))
        };
        let mistyped =
            |problems: &[Problem]| problems.iter().any(|p| is_here(p) && is_type(&p.what));
        let (wrong, mut right): (Vec<_>, Vec<_>) =
            branches.into_iter().partition(|(_, problems)| mistyped(problems));
        // One that names the value of `type`, by which network devices and passwords are told apart.
        let names_type = |schema: &'static Json| {
            let value = node.get("type").map(|value| &value.value)?;
            let schema = schema
                .get("$ref")
                .and_then(Json::text)
                .map_or(Some(schema), |name| self.root.find(name))?;
            let allowed = schema.get("properties")?.get("type")?.get("enum")?;
            allowed.items().iter().any(|item| item.equals(value)).then_some(())
        };
        if let Some(at) = right.iter().position(|(schema, _)| names_type(schema).is_some()) {
            return right.swap_remove(at).1;
        }
        if right.is_empty() {
            return joined(wrong.into_iter().flat_map(|(_, problems)| problems).filter(is_here));
        }
        if right.len() > 1 {
            let all: Vec<Problem> =
                right.iter().flat_map(|(_, problems)| problems).cloned().collect();
            if all.iter().all(is_here) {
                return joined(all.into_iter());
            }
            // All speak of the value of `type`: it is the one that is wrong.
            let types = all
                .iter()
                .filter(|p| p.depth == depth + 1 && p.path.ends_with(".type"))
                .filter(|p| matches!(p.what, What::Value { .. }));
            if types.clone().count() >= right.len() {
                return joined(types.cloned());
            }
        }
        let errors = |problems: &[Problem]| problems.iter().filter(|p| p.what.is_error()).count();
        right
            .into_iter()
            .min_by_key(|(_, problems)| errors(problems))
            .map(|(_, p)| p)
            .unwrap_or_default()
    }

    fn check_not(&mut self, rule: &'static Json, node: &Node, mark: Mark) {
        if self.tried(rule, node, mark).iter().any(|problem| problem.what.is_error()) {
            return;
        }
        let keys = rule.get("required").map(Json::texts);
        self.problem(mark, keys.map_or(What::Refused, |keys| What::TooManyKeys { keys }));
    }

    fn check_deprecated(&mut self, prefix: &str, schema: &'static Json, mark: Mark) {
        let text = |part: &str| {
            schema.get(&format!("{prefix}_{part}")).and_then(Json::text).unwrap_or_default()
        };
        let (version, description) = (text("version"), text("description"));
        self.problem(mark, What::Deprecated { version, description });
    }

    fn check_properties(&mut self, rule: &'static Json, entries: &[Entry]) {
        for entry in entries {
            let Some(key) = entry.key.text() else { continue };
            if let Some(schema) = rule.get(key) {
                self.check_entry(schema, key, entry);
            }
        }
    }

    /// A value by the schema of its key. What is wrong with the mapping or list as a whole is shown
    /// at its key.
    fn check_entry(&mut self, schema: &'static Json, key: &str, entry: &Entry) {
        let value = &entry.value;
        let mark = match &value.value {
            Value::Map(_) | Value::List(_) | Value::Null => entry.key.mark,
            Value::Text(text) if text.is_literal => entry.key.mark,
            _ => value.mark,
        };
        let before = self.found.len();
        self.within(Step::Key(key.to_owned()), |walk| walk.check(schema, value, mark));
        if schema.get("deprecated").is_some() {
            // The key is, whatever its value.
            let is_key = |problem: &&mut Problem| {
                problem.mark == mark && matches!(problem.what, What::Deprecated { .. })
            };
            self.found[before..].iter_mut().filter(is_key).for_each(|p| p.mark = entry.key.mark);
        }
    }

    fn check_patterns(&mut self, rule: &'static Json, entries: &[Entry]) {
        for (pattern, schema) in rule.entries() {
            for entry in entries {
                let Some(key) = entry.key.text() else {
                    self.problem(entry.key.mark, What::KeyType { got: entry.key.kind() });
                    continue;
                };
                if is_match(pattern, key) {
                    self.check_entry(schema, key, entry);
                }
            }
        }
    }

    fn check_additional(&mut self, rule: &'static Json, schema: &'static Json, entries: &[Entry]) {
        let properties = schema.get("properties");
        let patterns = schema.get("patternProperties").map_or(&[][..], Json::entries);
        for entry in entries {
            let key = entry.key.text();
            let is_known = key.is_some_and(|key| {
                properties.is_some_and(|known| known.get(key).is_some())
                    || patterns.iter().any(|(pattern, _)| is_match(pattern, key))
            });
            if is_known || entry.key.value == Value::Unknown {
                continue;
            }
            let name = key.map_or_else(|| entry.key.kind().to_owned(), str::to_owned);
            if rule.is_false() {
                let known = properties.map_or(&[][..], Json::entries);
                let known = known.iter().filter(|(_, s)| s.get("deprecated").is_none());
                let known = known.map(|(key, _)| *key).collect();
                let key = name.clone();
                self.within(Step::Key(name), |walk| {
                    walk.problem(entry.key.mark, What::UnknownKey { key, known });
                });
            } else {
                self.check_entry(rule, &name, entry);
            }
        }
    }

    fn check_required(&mut self, rule: &'static Json, node: &Node, mark: Mark) {
        for key in rule.texts() {
            if node.get(key).is_none() {
                self.problem(mark, What::MissingKey { keys: vec![key] });
            }
        }
    }

    fn at_least(&mut self, rule: &'static Json, got: usize, unit: &'static str, mark: Mark) {
        if rule.number().is_some_and(|min| (got as f64) < min) {
            self.problem(
                mark,
                What::Range { expected: format!("at least {}", rule.shown()), unit },
            );
        }
    }

    fn at_most(&mut self, rule: &'static Json, got: usize, unit: &'static str, mark: Mark) {
        if rule.number().is_some_and(|max| (got as f64) > max) {
            self.problem(mark, What::Range { expected: format!("at most {}", rule.shown()), unit });
        }
    }

    fn check_limit(&mut self, keyword: &str, rule: &'static Json, value: &Value, mark: Mark) {
        let got = match value {
            Value::Int(Some(int)) => *int as f64,
            Value::Int(None) => f64::INFINITY,
            Value::Float(float) => *float,
            _ => return,
        };
        let Some(limit) = rule.number() else { return };
        let (is_within, words) = match keyword {
            "minimum" => (got >= limit, "at least"),
            _ => (got <= limit, "at most"),
        };
        if !is_within {
            let expected = format!("{words} {}", rule.shown());
            self.problem(mark, What::Range { expected, unit: "" });
        }
    }

    fn check_unique(&mut self, items: &[std::rc::Rc<Node>]) {
        let mut seen = std::collections::HashSet::new();
        for (number, item) in items.iter().enumerate() {
            // Only what is short is compared: lists of long mappings would cost what they weigh.
            let is_scalar = !matches!(item.value, Value::List(_) | Value::Map(_) | Value::Unknown);
            if is_scalar && !seen.insert(format!("{:?}", item.value)) {
                self.within(Step::Item(number), |walk| walk.problem(item.mark, What::Repeated));
            }
        }
    }

    fn check_pattern(&mut self, rule: &'static Json, text: &str, mark: Mark) {
        if let Some(pattern) = rule.text().filter(|pattern| !is_match(pattern, text)) {
            self.problem(mark, What::Pattern { pattern });
        }
    }

    fn check_date(&mut self, text: &str, mark: Mark) {
        if text.parse::<jiff::civil::Date>().is_err() {
            let expected = vec!["a date as `2030-12-31`".to_owned()];
            self.problem(mark, What::Value { expected, got: format!("`{}`", shortened(text)) });
        }
    }
}

/// Problems of one kind with one value, as one.
fn joined(problems: impl Iterator<Item = Problem>) -> Vec<Problem> {
    let mut joined: Vec<Problem> = Vec::new();
    for problem in problems {
        let Some(other) = joined
            .iter_mut()
            .find(|other| other.mark == problem.mark && other.path == problem.path)
        else {
            joined.push(problem);
            continue;
        };
        match (&mut other.what, problem.what) {
            (What::Type { expected, .. }, What::Type { expected: more, .. }) => add(expected, more),
            (What::Value { expected, .. }, What::Value { expected: more, .. }) => {
                add(expected, more);
            }
            (What::MissingKey { keys }, What::MissingKey { keys: more }) => add(keys, more),
            (What::Value { expected, .. }, What::Pattern { pattern }) => {
                add(expected, vec![format!("a text of the form `{pattern}`")]);
            }
            (what @ What::Value { .. }, type_of @ What::Type { .. }) => *what = type_of,
            _ => {}
        }
    }
    joined
}

fn add<T: PartialEq>(to: &mut Vec<T>, more: Vec<T>) {
    for item in more {
        if !to.contains(&item) {
            to.push(item);
        }
    }
}

/// The types of draft 4 (JSON Schema core §3.5), where `integer` is no float and no boolean.
fn is_type(value: &Value, name: &str) -> bool {
    match value {
        Value::Null => name == "null",
        Value::Bool(_) => name == "boolean",
        Value::Int(_) => matches!(name, "integer" | "number"),
        Value::Float(_) => name == "number",
        Value::Text(_) | Value::Binary => name == "string",
        Value::List(_) => name == "array",
        Value::Map(_) => name == "object",
        Value::Unknown => true,
        Value::Timestamp | Value::Other | Value::Merge => false,
    }
}

/// Python's `re.search`. The schemas' expressions are ours to trust, and compiled as they are met.
fn is_match(pattern: &str, text: &str) -> bool {
    match pattern {
        // Most of them, and not worth compiling.
        "^.+$" => text.split('\n').next().is_some_and(|line| !line.is_empty()),
        "^.*$" => true,
        _ => Regex::new(pattern).is_ok_and(|regex| regex.is_match(text)),
    }
}

/// A path as people write it: `users[1].passwd`.
fn path_text(path: &[Step]) -> String {
    let mut text = String::new();
    for step in path {
        match step {
            Step::Key(key) => {
                if !text.is_empty() {
                    text.push('.');
                }
                text.push_str(&shortened(key));
            }
            Step::Item(number) => text.push_str(&format!("[{number}]")),
        }
    }
    text
}

/// The beginning of a text, for messages.
pub(super) fn shortened(text: &str) -> String {
    const SHOWN: usize = 40;
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Keywords that describe, and judge nothing; and those that draft 4 does not know, so that
    /// cloud-init's validator passes them over.
    const SILENT: [&str; 17] = [
        "$schema",
        "$defs",
        "description",
        "default",
        "label",
        "hidden",
        "examples",
        "title",
        "additionalItems",
        "prefixItems",
        "deprecated_version",
        "deprecated_description",
        "changed_version",
        "changed_description",
        "new",
        "new_version",
        "new_description",
    ];

    const KNOWN: [&str; 22] = [
        "$ref",
        "type",
        "enum",
        "allOf",
        "anyOf",
        "oneOf",
        "not",
        "deprecated",
        "changed",
        "properties",
        "patternProperties",
        "additionalProperties",
        "required",
        "minProperties",
        "items",
        "minItems",
        "maxItems",
        "uniqueItems",
        "pattern",
        "maxLength",
        "minimum",
        "maximum",
    ];

    fn keywords(schema: &Json, found: &mut BTreeSet<String>, root: &Json) {
        for (keyword, value) in schema.entries() {
            found.insert((*keyword).to_owned());
            match *keyword {
                "properties" | "patternProperties" | "$defs" => {
                    value.entries().iter().for_each(|(_, schema)| keywords(schema, found, root));
                }
                "allOf" | "anyOf" | "oneOf" => {
                    value.items().iter().for_each(|schema| keywords(schema, found, root));
                }
                "items" => {
                    assert!(value.items().is_empty(), "`items` is one schema for all");
                    keywords(value, found, root);
                }
                "additionalProperties" | "not" => keywords(value, found, root),
                "$ref" => assert!(root.find(value.text().unwrap()).is_some(), "{value:?}"),
                "pattern" => drop(Regex::new(value.text().unwrap()).unwrap()),
                _ => {}
            }
            if *keyword == "patternProperties" {
                value.entries().iter().for_each(|(pattern, _)| drop(Regex::new(pattern).unwrap()));
            }
        }
    }

    #[test]
    fn every_keyword_of_the_schemas_is_known() {
        for schema in [Schema::CloudConfig, Schema::NetworkV1, Schema::NetworkV2] {
            let mut found = BTreeSet::new();
            keywords(schema.root(), &mut found, schema.root());
            for keyword in KNOWN.iter().chain(&SILENT).chain(&["format"]) {
                found.remove(*keyword);
            }
            assert!(found.is_empty(), "{schema:?} has keywords that nothing looks at: {found:?}");
        }
    }
}
