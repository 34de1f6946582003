//! JSON that borrows from the program's own text: parsing a schema copies next to nothing.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

use bootyard_yaml::Value;

/// A value of a schema. The keys stay in their order; none is looked up often enough for a map.
#[derive(Debug)]
pub(in crate::lint) enum Json {
    Null,
    Bool(bool),
    Number(f64),
    Text(Cow<'static, str>),
    List(Vec<Self>),
    Map(Vec<(&'static str, Self)>),
}

impl Json {
    /// Parses a schema that is part of the program.
    pub(super) fn parse(text: &'static str) -> Self {
        serde_json::from_str(text).expect("the schemas are JSON, as the tests see")
    }

    pub(in crate::lint) fn entries(&self) -> &[(&'static str, Self)] {
        match self {
            Self::Map(entries) => entries,
            _ => &[],
        }
    }

    pub(in crate::lint) fn get(&self, key: &str) -> Option<&Self> {
        self.entries().iter().find(|(name, _)| *name == key).map(|(_, value)| value)
    }

    pub(super) fn items(&self) -> &[Self] {
        match self {
            Self::List(items) => items,
            _ => &[],
        }
    }

    pub(super) fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// One text, or all of a list.
    pub(super) fn texts(&self) -> Vec<&str> {
        match self {
            Self::Text(text) => vec![text],
            _ => self.items().iter().filter_map(Self::text).collect(),
        }
    }

    pub(super) const fn number(&self) -> Option<f64> {
        match self {
            Self::Number(number) => Some(*number),
            _ => None,
        }
    }

    pub(super) const fn is_false(&self) -> bool {
        matches!(self, Self::Bool(false))
    }

    /// What a reference such as `#/$defs/cc_ntp` leads to.
    pub(in crate::lint) fn find(&self, reference: &str) -> Option<&Self> {
        let mut steps = reference.strip_prefix("#/")?.split('/');
        steps.try_fold(self, |found, step| found.get(step))
    }

    pub(super) fn equals(&self, value: &Value) -> bool {
        match (self, value) {
            (Self::Null, Value::Null) | (_, Value::Unknown) => true,
            (Self::Bool(one), Value::Bool(other)) => one == other,
            (Self::Number(one), Value::Int(Some(other))) => *one == *other as f64,
            (Self::Number(one), Value::Float(other)) => one == other,
            (Self::Text(one), Value::Text(other)) => *one == other.text,
            _ => false,
        }
    }

    /// How it is written in YAML, for messages.
    pub(super) fn shown(&self) -> String {
        match self {
            Self::Null => "`null`".to_owned(),
            Self::Bool(bool) => format!("`{bool}`"),
            Self::Number(number) => number.to_string(),
            Self::Text(text) => format!("`{text}`"),
            Self::List(_) | Self::Map(_) => "…".to_owned(),
        }
    }
}

impl<'de: 'static> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Any)
    }
}

struct Any;

impl<'de: 'static> Visitor<'de> for Any {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, bool: bool) -> Result<Json, E> {
        Ok(Json::Bool(bool))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Json, E> {
        Ok(Json::Number(number as f64))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Json, E> {
        Ok(Json::Number(number as f64))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Json, E> {
        Ok(Json::Number(number))
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Json, E> {
        Ok(Json::Text(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Json, E> {
        Ok(Json::Text(Cow::Owned(text.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Json, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element()? {
            items.push(item);
        }
        Ok(Json::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Json::Map(entries))
    }
}
