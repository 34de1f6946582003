//! `explain`: what a field is for, as `kubectl explain` tells it.

use std::fmt::Write as _;

use bootyard_spec::near_word;

use crate::object::{KINDS, KindEntry, kind_named};
use crate::read::{FieldShape, ObjectShape, Shape};

/// Why there is nothing to explain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Unexplained {
    message: String,
    hint: Option<String>,
}

impl Unexplained {
    /// What helps.
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }
}

/// What the field at `path` is for, and which fields it has: `vm.spec.template.spec.domain.cpu`. A path
/// that begins with no kind is one of a VirtualMachine; an empty one lists the kinds.
pub fn explain(path: &str) -> Result<String, Unexplained> {
    let mut steps = path.split('.').filter(|step| !step.is_empty()).peekable();
    let Some(first) = steps.peek().copied() else { return Ok(kinds()) };
    let kind = match kind_named(first) {
        Some(kind) => {
            steps.next();
            kind
        }
        None => kind_named("VirtualMachine").expect("it is one of the kinds"),
    };
    let mut at = Place { shape: Shape::Object(kind.shape), field: None };
    let mut walked = kind.kind.to_owned();
    for step in steps {
        // As in the paths of problems.
        let name = step.split('[').next().unwrap_or(step);
        at = at.enter(name, &walked)?;
        walked = format!("{walked}.{name}");
    }
    Ok(at.describe(kind))
}

/// A field that is being explained.
struct Place {
    shape: Shape,
    field: Option<&'static FieldShape>,
}

impl Place {
    fn enter(&self, name: &str, path: &str) -> Result<Self, Unexplained> {
        let fields = object(&self.shape).map_or(&[][..], |object| object.fields);
        let found = fields.iter().find(|field| field.name == name);
        if let Some(field) = found {
            return Ok(Self { shape: (field.shape)(), field: Some(field) });
        }
        if let Shape::Map(inner) = &self.shape {
            return Ok(Self { shape: (**inner).clone(), field: self.field });
        }
        let near = near_word(name, fields.iter().map(|field| field.name));
        Err(Unexplained {
            message: format!("`{path}` has no field `{name}`"),
            hint: Some(match near {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("`bootyard explain {path}` lists its fields"),
            }),
        })
    }

    fn describe(&self, kind: &KindEntry) -> String {
        let mut out = format!("KIND:     {}\nVERSION:  {}\n", kind.kind, kind.version);
        let about = match self.field {
            Some(field) => {
                let _ = writeln!(out, "FIELD:    {} <{}>", field.name, called(&self.shape));
                field.about
            }
            None => kind.shape.about,
        };
        out.push_str("\nDESCRIPTION:\n");
        paragraph(&mut out, about, 4);
        if let Shape::Words(words) = innermost(&self.shape) {
            let _ = writeln!(out, "    One of: {}", words.join(", "));
        }
        if let Some(object) = object(&self.shape) {
            out.push_str("\nFIELDS:\n");
            for field in object.fields {
                let required = if field.required { " -required-" } else { "" };
                let _ = writeln!(out, "  {} <{}>{required}", field.name, called(&(field.shape)()));
                paragraph(&mut out, field.about, 4);
            }
        }
        out
    }
}

/// Documentation comments as text.
fn paragraph(out: &mut String, lines: &[&str], indent: usize) {
    for line in lines {
        let _ = writeln!(out, "{:indent$}{}", "", line.trim());
    }
}

/// The fields of an object, or of those in a list.
fn object(shape: &Shape) -> Option<&'static ObjectShape> {
    match innermost(shape) {
        Shape::Object(object) => Some(object),
        _ => None,
    }
}

fn innermost(shape: &Shape) -> &Shape {
    match shape {
        Shape::List(inner) => innermost(inner),
        other => other,
    }
}

/// A type as people call it.
fn called(shape: &Shape) -> String {
    match shape {
        Shape::Scalar(name) => (*name).to_owned(),
        Shape::Words(_) => "a word".to_owned(),
        Shape::List(inner) => format!("list of {}", called(inner)),
        Shape::Map(inner) => format!("map of {}", called(inner)),
        Shape::Object(object) => object.name.to_owned(),
        Shape::Accepted => "anything, without effect here".to_owned(),
    }
}

fn kinds() -> String {
    let mut out = "KINDS:\n".to_owned();
    for KindEntry { kind, version, short, shape } in &KINDS {
        let short =
            if short.is_empty() { String::new() } else { format!(" ({})", short.join(", ")) };
        let _ = writeln!(out, "  {kind}{short} <{version}>");
        paragraph(&mut out, shape.about, 4);
    }
    out
}
