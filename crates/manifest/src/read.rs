//! How wire types are read: each field by its name, with all problems collected instead of the first.
//! Something stands in for what cannot be read, so that the rest can be examined.
//!
//! [`object!`] declares a type once: its fields, what they are for, how they are read, and what
//! `explain` tells of them. A field that a cluster has and this program does not act on is of the type
//! [`Accepted`], so that no valid manifest is called wrong.

use std::collections::BTreeMap;
use std::fmt;

use bootyard_spec::near_word;
use bootyard_yaml::{Entry, Mark, Node, Value};

use crate::problem::Problems;

/// A value, and which field it is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct At<'a> {
    /// The field.
    pub(crate) path: &'a str,
    /// Its value.
    pub(crate) node: &'a Node,
    /// What to underline: the value, or the key of a list or a mapping.
    pub(crate) mark: Mark,
}

/// What can be read from a manifest.
pub(crate) trait Read: Sized {
    /// Reads a value that is there.
    fn read(at: At<'_>, problems: &mut Problems) -> Self;

    /// What stands for a field that is absent, `null` or wrong.
    fn absent() -> Self;

    /// It must be there.
    const REQUIRED: bool = true;

    /// What it is, for `explain`.
    fn shape() -> Shape;
}

/// What a field may hold.
#[derive(Debug, Clone)]
pub(crate) enum Shape {
    /// A single value, as people call its type.
    Scalar(&'static str),
    /// One of these words.
    Words(&'static [&'static str]),
    /// A list of them.
    List(Box<Self>),
    /// Texts to such values.
    Map(Box<Self>),
    /// Fields.
    Object(&'static ObjectShape),
    /// A field that is taken and not acted upon.
    Accepted,
}

/// The fields of an object.
#[derive(Debug)]
pub(crate) struct ObjectShape {
    /// The type's name upstream.
    pub(crate) name: &'static str,
    /// What it is for.
    pub(crate) about: &'static [&'static str],
    /// Its fields.
    pub(crate) fields: &'static [FieldShape],
}

/// One field of an object.
#[derive(Debug)]
pub(crate) struct FieldShape {
    /// Its name in a manifest.
    pub(crate) name: &'static str,
    /// What it is for.
    pub(crate) about: &'static [&'static str],
    /// What it may hold.
    pub(crate) shape: fn() -> Shape,
    /// It must be there.
    pub(crate) required: bool,
}

/// The fields of a mapping while they are read.
pub(crate) struct Fields<'a> {
    at: At<'a>,
    entries: &'a [Entry],
}

impl<'a> Fields<'a> {
    /// The fields of a value that must be a mapping of none but the `known` ones.
    pub(crate) fn of(
        at: At<'a>,
        known: &'static [FieldShape],
        problems: &mut Problems,
    ) -> Option<Self> {
        let Value::Map(entries) = &at.node.value else {
            expected("a mapping", at, problems);
            return None;
        };
        for Entry { key, .. } in entries {
            let name = key.text().unwrap_or_default();
            if known.iter().all(|field| field.name != name) {
                let problem = problems.error(
                    &join(at.path, name),
                    key.mark,
                    format!("unknown field `{name}`"),
                );
                if let Some(near) = near_word(name, known.iter().map(|field| field.name)) {
                    problem.hint(format!("did you mean `{near}`?"));
                } else if known.len() <= 8 {
                    let names: Vec<&str> = known.iter().map(|field| field.name).collect();
                    problem.hint(format!("here may be: {}", names.join(", ")));
                }
            }
        }
        Some(Self { at, entries })
    }

    /// The field `name`.
    pub(crate) fn get<T: Read>(&self, name: &str, problems: &mut Problems) -> T {
        let found = self.entries.iter().rev().find(|entry| entry.key.text() == Some(name));
        let found = found.filter(|entry| entry.value.value != Value::Null);
        let path = join(self.at.path, name);
        match found {
            Some(entry) => {
                let at = At { path: &path, node: &entry.value, mark: of_entry(entry) };
                T::read(at, problems)
            }
            None => {
                if T::REQUIRED {
                    problems.error(&path, self.at.mark, "Required value");
                }
                T::absent()
            }
        }
    }
}

/// What to underline of a field: its value, or of a list or a mapping the key.
pub(crate) fn of_entry(Entry { key, value }: &Entry) -> Mark {
    match value.value {
        Value::List(_) | Value::Map(_) | Value::Null => key.mark,
        _ => value.mark,
    }
}

/// What to underline of an item of a list: of a mapping the first key.
pub(crate) fn of_item(item: &Node) -> Mark {
    item.entries().iter().map(|entry| entry.key.mark).min().unwrap_or(item.mark)
}

/// The path of a field of an object.
pub(crate) fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// Tells that something else is there than was expected.
pub(crate) fn expected(what: &str, At { path, node, mark }: At<'_>, problems: &mut Problems) {
    let problem = problems.error(path, mark, format!("expected {what}, got {}", node.kind()));
    if what == "text" && matches!(node.value, Value::Bool(_) | Value::Int(_) | Value::Float(_)) {
        problem.hint("put it into quotes");
    }
}

impl<T: Read> Read for Option<T> {
    const REQUIRED: bool = false;

    fn read(at: At<'_>, problems: &mut Problems) -> Self {
        Some(T::read(at, problems))
    }

    fn absent() -> Self {
        None
    }

    fn shape() -> Shape {
        T::shape()
    }
}

impl<T: Read> Read for Vec<T> {
    const REQUIRED: bool = false;

    fn read(at: At<'_>, problems: &mut Problems) -> Self {
        let Value::List(items) = &at.node.value else {
            expected("a list", at, problems);
            return Self::new();
        };
        let read = items.iter().enumerate().map(|(index, node)| {
            let path = format!("{}[{index}]", at.path);
            T::read(At { path: &path, node, mark: of_item(node) }, problems)
        });
        read.collect()
    }

    fn absent() -> Self {
        Self::new()
    }

    fn shape() -> Shape {
        Shape::List(Box::new(T::shape()))
    }
}

impl<T: Read> Read for BTreeMap<String, T> {
    const REQUIRED: bool = false;

    fn read(at: At<'_>, problems: &mut Problems) -> Self {
        let Value::Map(entries) = &at.node.value else {
            expected("a mapping", at, problems);
            return Self::new();
        };
        let read = entries.iter().filter_map(|entry| {
            let name = entry.key.text()?;
            let path = join(at.path, name);
            let at = At { path: &path, node: &entry.value, mark: of_entry(entry) };
            Some((name.to_owned(), T::read(at, problems)))
        });
        read.collect()
    }

    fn absent() -> Self {
        Self::new()
    }

    fn shape() -> Shape {
        Shape::Map(Box::new(T::shape()))
    }
}

impl Read for String {
    fn read(at: At<'_>, problems: &mut Problems) -> Self {
        let text = at.node.text();
        if text.is_none() {
            expected("text", at, problems);
        }
        text.unwrap_or_default().to_owned()
    }

    fn absent() -> Self {
        Self::new()
    }

    fn shape() -> Shape {
        Shape::Scalar("text")
    }
}

impl Read for bool {
    fn read(at: At<'_>, problems: &mut Problems) -> Self {
        if let Value::Bool(value) = at.node.value {
            return value;
        }
        expected("true or false", at, problems);
        Self::absent()
    }

    fn absent() -> Self {
        false
    }

    fn shape() -> Shape {
        Shape::Scalar("true or false")
    }
}

/// Reads a whole number of a type that is narrower.
fn whole<T: TryFrom<i128> + fmt::Display>(
    at: At<'_>,
    (min, max): (T, T),
    problems: &mut Problems,
) -> Option<T> {
    let Value::Int(value) = at.node.value else {
        expected("a whole number", at, problems);
        return None;
    };
    let number = value.and_then(|value| T::try_from(value).ok());
    if number.is_none() {
        problems.error(at.path, at.mark, format!("expected a number from {min} to {max}"));
    }
    number
}

macro_rules! numbers {
    ($($number:ty),*) => {$(
        impl Read for $number {
            fn read(at: At<'_>, problems: &mut Problems) -> Self {
                // What stands in is no number that a rule forbids.
                whole(at, (Self::MIN, Self::MAX), problems).unwrap_or(1)
            }

            fn absent() -> Self {
                1
            }

            fn shape() -> Shape {
                Shape::Scalar("a whole number")
            }
        }
    )*};
}

numbers!(u16, u32, i64);

/// A field that is taken, since a cluster has it, and not acted upon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accepted;

impl Read for Accepted {
    fn read(at: At<'_>, problems: &mut Problems) -> Self {
        problems.warn(at.path, at.mark, "has no effect on this host");
        Self
    }

    fn absent() -> Self {
        Self
    }

    fn shape() -> Shape {
        Shape::Accepted
    }
}

/// Something that is on if it is named: `{}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Empty;

impl Read for Empty {
    fn read(at: At<'_>, problems: &mut Problems) -> Self {
        let _ = Fields::of(at, &[], problems);
        Self
    }

    fn absent() -> Self {
        Self
    }

    fn shape() -> Shape {
        Shape::Scalar("{}, which turns it on")
    }
}

/// A field that is none of a user's: what a cluster notes in its objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Silent;

impl Read for Silent {
    fn read(_: At<'_>, _: &mut Problems) -> Self {
        Self
    }

    fn absent() -> Self {
        Self
    }

    fn shape() -> Shape {
        Shape::Accepted
    }
}

/// An amount as Kubernetes writes it (`resource.Quantity`): a number, or text with a unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quantity(
    /// As it stands there.
    pub String,
);

impl Read for Quantity {
    fn read(at: At<'_>, problems: &mut Problems) -> Self {
        match &at.node.value {
            Value::Text(text) => Self(text.text.clone()),
            Value::Int(Some(number)) => Self(number.to_string()),
            Value::Float(number) if number.is_finite() => Self(number.to_string()),
            _ => {
                expected("a quantity such as 8Gi", at, problems);
                Self::absent()
            }
        }
    }

    fn absent() -> Self {
        Self(String::new())
    }

    fn shape() -> Shape {
        Shape::Scalar("a quantity such as 8Gi")
    }
}

/// Declares objects of manifests: a name, what it is for, and the fields with their names in a manifest
/// and what they are for. A field of the type `Option<…>`, `Vec<…>` or `BTreeMap<…>` may be absent.
macro_rules! object {
    ($($(#[doc = $about:literal])+ $name:ident {
        $($(#[doc = $doc:literal])+ $key:literal $field:ident: $type:ty,)*
    })*) => {$(
        $(#[doc = $about])+
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct $name {
            $($(#[doc = $doc])+ pub $field: $type,)*
        }

        impl $name {
            /// What `explain` tells of it.
            pub(crate) const SHAPE: $crate::read::ObjectShape = $crate::read::ObjectShape {
                name: stringify!($name),
                about: &[$($about),+],
                fields: &[$($crate::read::FieldShape {
                    name: $key,
                    about: &[$($doc),+],
                    shape: <$type as $crate::read::Read>::shape,
                    required: <$type as $crate::read::Read>::REQUIRED,
                },)*],
            };
        }

        impl $crate::read::Read for $name {
            fn read(
                at: $crate::read::At<'_>,
                problems: &mut $crate::problem::Problems,
            ) -> Self {
                match $crate::read::Fields::of(at, Self::SHAPE.fields, problems) {
                    Some(fields) => Self { $($field: fields.get($key, problems),)* },
                    None => Self::absent(),
                }
            }

            fn absent() -> Self {
                Self { $($field: $crate::read::Read::absent(),)* }
            }

            fn shape() -> $crate::read::Shape {
                $crate::read::Shape::Object(&Self::SHAPE)
            }
        }
    )*};
}

/// Declares the words of a field, and how another word is refused where upstream has a text of its own.
macro_rules! words {
    ($($(#[doc = $about:literal])+ $name:ident $(($refusal:literal))? {
        $($(#[doc = $doc:literal])+ $word:ident = $text:literal,)+
    })*) => {$(
        $(#[doc = $about])+
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name {
            $($(#[doc = $doc])+ $word,)+
        }

        impl $crate::read::Read for $name {
            fn read(
                at: $crate::read::At<'_>,
                problems: &mut $crate::problem::Problems,
            ) -> Self {
                let Some(text) = at.node.text() else {
                    $crate::read::expected("text", at, problems);
                    return Self::absent();
                };
                match text {
                    $($text => Self::$word,)+
                    _ => {
                        let refusal: &[&str] = &[$($refusal)?];
                        $crate::read::unsupported(text, Self::WORDS, refusal, at, problems);
                        Self::absent()
                    }
                }
            }

            fn absent() -> Self {
                Self::ALL[0]
            }

            fn shape() -> $crate::read::Shape {
                $crate::read::Shape::Words(Self::WORDS)
            }
        }

        impl $name {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$word),+];
            const WORDS: &[&str] = &[$($text),+];

            /// As manifests spell it.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$word => $text,)+
                }
            }
        }
    )*};
}

pub(crate) use {object, words};

/// Tells that a word is none of those that may stand there.
pub(crate) fn unsupported(
    word: &str,
    words: &'static [&'static str],
    refusal: &[&str],
    at: At<'_>,
    problems: &mut Problems,
) {
    let known: Vec<String> = words.iter().map(|word| format!("{word:?}")).collect();
    let message = match refusal {
        [own, ..] => own.replace("{word}", word).replace("{WORD}", &word.to_uppercase()),
        [] => format!("Unsupported value: {word:?}: supported values: {}", known.join(", ")),
    };
    let problem = problems.error(at.path, at.mark, message);
    match near_word(word, words.iter().copied()) {
        Some(near) => problem.hint(format!("did you mean `{near}`?")),
        None if !refusal.is_empty() => problem.hint(format!("one of {}", known.join(", "))),
        None => {}
    }
}
