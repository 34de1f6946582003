//! What a scalar is in YAML 1.1: by the expressions of PyYAML's `resolver.py` and the conversions of its
//! `constructor.py`, and by `resolve.go` of the `goyaml.v2` in `sigs.k8s.io/yaml`.

mod go;

use granit_parser::ScalarStyle;

use super::{Dialect, PLACEHOLDER, Text, Value};

/// The prefix that `!!` stands for (YAML 1.1 §3.3.2).
const CORE: &str = "tag:yaml.org,2002:";

/// What is wrong, and what helps.
pub(super) type Wrong = (String, Option<String>);

fn wrong<T>(what: impl Into<String>, hint: &str) -> Result<T, Wrong> {
    Err((what.into(), Some(hint.to_owned())))
}

/// The value of a scalar.
pub(super) fn resolve(
    dialect: Dialect,
    text: &str,
    style: ScalarStyle,
    tag: Option<&str>,
) -> Result<Value, Wrong> {
    if dialect == Dialect::CloudInit && text.contains(PLACEHOLDER) {
        return Ok(Value::Unknown);
    }
    let as_text = || {
        let is_literal = style == ScalarStyle::Literal;
        Value::Text(Text { text: text.to_owned(), is_literal })
    };
    // The tag `!` alone makes PyYAML look at any scalar as at one without quotes.
    let is_plain = style == ScalarStyle::Plain || tag == Some("!");
    let Some(tag) = tag.filter(|tag| *tag != "!") else {
        let value = match dialect {
            _ if !is_plain => None,
            Dialect::CloudInit => plain(text)?,
            Dialect::Kubernetes => go::plain(text),
        };
        return Ok(value.unwrap_or_else(as_text));
    };
    match tag.strip_prefix(CORE) {
        Some("str" | "python/unicode") => Ok(as_text()),
        Some("binary") => Ok(Value::Binary),
        Some("null") => Ok(Value::Null),
        Some(kind @ ("bool" | "int" | "float" | "timestamp")) => typed(kind, text),
        _ => unknown_tag(dialect, tag),
    }
}

/// A value of a collection with a tag.
pub(super) fn tagged(dialect: Dialect, value: Value, tag: Option<&str>) -> Result<Value, Wrong> {
    let Some(tag) = tag else { return Ok(value) };
    match (tag.strip_prefix(CORE), &value) {
        (Some("seq"), Value::List(_)) | (Some("map"), Value::Map(_)) => Ok(value),
        (Some("set"), Value::Map(_)) | (Some("omap" | "pairs"), Value::List(_)) => Ok(Value::Other),
        _ if tag == "!" => Ok(value),
        _ => unknown_tag(dialect, tag),
    }
}

fn unknown_tag<T>(dialect: Dialect, tag: &str) -> Result<T, Wrong> {
    // A password may begin with `!`.
    let shown =
        tag.strip_prefix(CORE).map_or("a tag".to_owned(), |tag| format!("the tag `!!{tag}`"));
    wrong(
        format!("{shown}, which {} does not read here", dialect.reader()),
        "remove it; a text that begins with `!` needs quotes",
    )
}

/// A scalar whose type is given.
fn typed(kind: &str, text: &str) -> Result<Value, Wrong> {
    let value = match kind {
        "bool" => boolean(&text.to_ascii_lowercase()),
        "int" => number(text).filter(|value| matches!(value, Value::Int(_))),
        "float" => match number(text) {
            Some(Value::Int(Some(int))) => Some(Value::Float(int as f64)),
            other => other,
        },
        _ => timestamp(text).transpose()?,
    };
    value.map_or_else(|| wrong(format!("this is not what `!!{kind}` says"), "remove the tag"), Ok)
}

/// What a plain scalar is besides text.
fn plain(text: &str) -> Result<Option<Value>, Wrong> {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Ok(Some(Value::Null)),
        "<<" => return Ok(Some(Value::Merge)),
        "=" => return wrong("`=` without quotes, which cloud-init does not read", "quote it"),
        _ => {}
    }
    if let Some(value) = boolean(text) {
        return Ok(Some(value));
    }
    // Nothing else begins otherwise, which saves most texts the rest.
    if !text.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c)) {
        return Ok(None);
    }
    match number(text) {
        Some(value) => Ok(Some(value)),
        None => timestamp(text).transpose(),
    }
}

/// Three spellings of each word, and not a fourth.
fn boolean(text: &str) -> Option<Value> {
    Some(Value::Bool(match text {
        "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => true,
        "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => false,
        _ => return None,
    }))
}

fn number(text: &str) -> Option<Value> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    let sign: i32 = if text.starts_with('-') { -1 } else { 1 };
    let only = |text: &str, allowed: &str| {
        !text.is_empty() && text.chars().all(|c| c == '_' || allowed.contains(c))
    };
    let int = |text: &str, radix| {
        let value = i128::from_str_radix(&text.replace('_', ""), radix).ok();
        Some(Value::Int(value.map(|value| i128::from(sign) * value)))
    };
    match digits {
        "" => return None,
        "0" => return Some(Value::Int(Some(0))),
        ".inf" | ".Inf" | ".INF" => return Some(Value::Float(f64::from(sign) * f64::INFINITY)),
        ".nan" | ".NaN" | ".NAN" if digits == text => return Some(Value::Float(f64::NAN)),
        _ => {}
    }
    if let Some(binary) = digits.strip_prefix("0b").filter(|text| only(text, "01")) {
        return int(binary, 2);
    }
    if let Some(hex) = digits.strip_prefix("0x").filter(|t| only(t, "0123456789abcdefABCDEF")) {
        return int(hex, 16);
    }
    if let Some(octal) = digits.strip_prefix('0').filter(|text| only(text, "01234567")) {
        return int(octal, 8);
    }
    let begins = digits.starts_with(|c: char| c.is_ascii_digit());
    if begins && !digits.starts_with('0') && only(digits, "0123456789") {
        return int(digits, 10);
    }
    if begins && digits.contains(':') {
        return sexagesimal(digits, sign);
    }
    float(digits, digits == text, f64::from(sign))
}

/// Numbers to the base 60, such as `1:30`, which is 90.
fn sexagesimal(digits: &str, sign: i32) -> Option<Value> {
    let (whole, fraction) = match digits.split_once('.') {
        Some((whole, fraction)) => (whole, Some(fraction)),
        None => (digits, None),
    };
    let mut parts = whole.split(':');
    let first = parts.next()?;
    if !first.bytes().all(|b| b.is_ascii_digit() || b == b'_')
        || (fraction.is_none() && first.starts_with('0'))
    {
        return None;
    }
    let mut value = first.replace('_', "").parse::<f64>().ok()?;
    for part in parts {
        let is_part = part.bytes().all(|b| b.is_ascii_digit()) && matches!(part.len(), 1 | 2);
        let number = part.parse::<u32>().ok().filter(|number| is_part && *number < 60)?;
        value = value * 60.0 + f64::from(number);
    }
    let value = value * f64::from(sign);
    match fraction {
        None => Some(Value::Int(Some(value as i128))),
        Some(fraction) => {
            let is_fraction = fraction.bytes().all(|b| b.is_ascii_digit() || b == b'_');
            let digits = fraction.replace('_', "");
            is_fraction.then(|| Value::Float(value + format!("0.{digits}0").parse().unwrap_or(0.0)))
        }
    }
}

/// `1.5`, `1.`, `.5`, `1.5e+3`: an exponent needs its sign and the point before it.
fn float(digits: &str, is_unsigned: bool, sign: f64) -> Option<Value> {
    let (whole, rest) = digits.split_once('.')?;
    let (fraction, exponent) = match rest.split_once(['e', 'E']) {
        Some((fraction, exponent)) => (fraction, Some(exponent)),
        None => (rest, None),
    };
    let all = |text: &str| text.bytes().all(|b| b.is_ascii_digit() || b == b'_');
    let begins = |text: &str| text.starts_with(|c: char| c.is_ascii_digit());
    if !all(whole) || !all(fraction) {
        return None;
    }
    // PyYAML's expression allows a sign only where a digit is before the point.
    if !(begins(whole) || (whole.is_empty() && is_unsigned && begins(fraction))) {
        return None;
    }
    if let Some(exponent) = exponent {
        let digits = exponent.strip_prefix(['+', '-'])?;
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
    }
    digits.replace('_', "").parse::<f64>().ok().map(|value| Value::Float(sign * value))
}

/// A date, with or without a time. `None` if it does not look like one; one that no calendar has is
/// an error, on which cloud-init stops reading.
fn timestamp(text: &str) -> Option<Result<Value, Wrong>> {
    let date: Vec<&str> = text.splitn(3, '-').collect();
    let [year, month, rest] = date.as_slice() else { return None };
    let digits = |text: &str, len: std::ops::RangeInclusive<usize>| {
        len.contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit())
    };
    if !digits(year, 4..=4) || !digits(month, 1..=2) {
        return None;
    }
    let day_end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let (day, time) = rest.split_at(day_end);
    let is_date = time.is_empty() && month.len() == 2 && day.len() == 2;
    if !digits(day, 1..=2) || !(is_date || is_time(time)) {
        return None;
    }
    let parse = |text: &str| text.parse::<i16>().unwrap_or(0);
    let (year, month, day) = (parse(year), parse(month) as i8, parse(day) as i8);
    if year == 0 || jiff::civil::Date::new(year, month, day).is_err() {
        return Some(wrong(
            "this looks like a date and is none, on which cloud-init stops reading",
            "quote it",
        ));
    }
    Some(Ok(Value::Timestamp))
}

/// What follows the day: `T` or blanks, `h:mm:ss`, a fraction, a zone.
fn is_time(text: &str) -> bool {
    let time = match text.strip_prefix(['t', 'T']) {
        Some(time) => time,
        None if text.starts_with([' ', '\t']) => text.trim_start_matches([' ', '\t']),
        None => return false,
    };
    let mut parts = time.splitn(3, ':');
    let (Some(hour), Some(minute), Some(rest)) = (parts.next(), parts.next(), parts.next()) else {
        return false;
    };
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    let Some((second, rest)) = rest.split_at_checked(2) else { return false };
    if !matches!(hour.len(), 1 | 2)
        || minute.len() != 2
        || !digits(hour)
        || !digits(minute)
        || !digits(second)
    {
        return false;
    }
    let rest = match rest.strip_prefix('.') {
        Some(fraction) => fraction.trim_start_matches(|c: char| c.is_ascii_digit()),
        None => rest,
    };
    let zone = rest.trim_start_matches([' ', '\t']);
    if rest.is_empty() || zone == "Z" {
        return true;
    }
    let Some(zone) = zone.strip_prefix(['+', '-']) else { return false };
    let (hours, minutes) = zone.split_once(':').unwrap_or((zone, "00"));
    matches!(hours.len(), 1 | 2) && digits(hours) && minutes.len() == 2 && digits(minutes)
}
