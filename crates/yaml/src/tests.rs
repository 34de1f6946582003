//! PyYAML itself is the oracle.
#![expect(clippy::disallowed_methods, reason = "PyYAML is the oracle")]

use std::collections::BTreeMap;
use std::process::{Command, Stdio};

use bootyard_testkit::{answer, corpus, require_tool, skip};

use super::*;

/// Prints what PyYAML makes of each text, or `refused`.
const ORACLE: &str = r#"
import datetime, json, struct, sys, yaml
def show(value):
    if value is None: return "null"
    if isinstance(value, bool): return "true" if value else "false"
    if isinstance(value, int): return f"i{value}"
    if isinstance(value, float):
        return "nan" if value != value else "f" + struct.pack(">d", value).hex()
    if isinstance(value, str): return json.dumps(value, ensure_ascii=False)
    if isinstance(value, (datetime.date, datetime.datetime)): return "date"
    if isinstance(value, bytes): return "bytes"
    if isinstance(value, list) and not any(isinstance(item, tuple) for item in value):
        return "[" + ", ".join(map(show, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(sorted(show(k) + ": " + show(v) for k, v in value.items())) + "}"
    return "other"
def read(text):
    try: return show(yaml.safe_load(text))
    except Exception: return "refused"
json.dump([read(text) for text in json.load(sys.stdin)], sys.stdout)
"#;

fn has_pyyaml() -> bool {
    let mut python = Command::new("python3");
    let import = python.args(["-c", "import yaml"]).stderr(Stdio::null()).status();
    require_tool("python3") && import.is_ok_and(|status| status.success())
}

fn oracle(texts: &[&str]) -> Vec<String> {
    let request = serde_json::to_vec(texts).unwrap();
    let answer = answer(Command::new("python3").args(["-c", ORACLE]), &request);
    serde_json::from_slice(&answer).expect("a list of texts")
}

fn shown(node: &Node) -> String {
    match &node.value {
        Value::Null => "null".to_owned(),
        Value::Bool(bool) => bool.to_string(),
        Value::Int(int) => format!("i{}", int.unwrap()),
        Value::Float(float) if float.is_nan() => "nan".to_owned(),
        Value::Float(float) => format!("f{:016x}", float.to_bits()),
        Value::Text(text) => serde_json::to_string(&text.text).unwrap(),
        Value::Timestamp => "date".to_owned(),
        Value::Binary => "bytes".to_owned(),
        Value::List(items) => {
            format!("[{}]", items.iter().map(|item| shown(item)).collect::<Vec<_>>().join(", "))
        }
        Value::Map(entries) => {
            let mut entries: Vec<String> = entries
                .iter()
                .map(|entry| format!("{}: {}", shown(&entry.key), shown(&entry.value)))
                .collect();
            entries.sort();
            format!("{{{}}}", entries.join(", "))
        }
        Value::Other => "other".to_owned(),
        Value::Unknown | Value::Merge => unreachable!("no document has these"),
    }
}

fn ours(text: &str) -> String {
    match document(text) {
        Ok(document) => document.root.map_or_else(|| "null".to_owned(), |root| shown(&root)),
        Err(_) => "refused".to_owned(),
    }
}

const SCALARS: &str = "yes Yes YES yEs y Y on On ON off true True TRUE tRue no No NO n false ~ null Null NULL \
    nULL 0 00 01 07 08 0644 0o644 0x1F 0X1F 0xfg 0b101 0b12 1_000 _1 1__0 +1 -1 -0 +07 1:30 01:30 1:60 \
    1:30:45 12:30:45.5 -1:30 1:3:2 00:11:22:33:44:55 10:20:30:40:50:51 1. .5 1.5 -.5 +.5 1e3 1.e3 1.5e3 1.5e+3 \
    1.5E-3 .5e+1 1_0.5 0.1 00.5 .inf -.inf +.INF .Inf .nan .NaN .NAN -.nan inf nan . .. ... - -- -a = == << <<< \
    2001-12-14 2001-2-3 2001-12-14t21:59:43.10-05:00 2001-12-14T21:59:43Z 2001-13-45 0000-01-01 20011214 2001-12 \
    2001-02-30T00:00:00Z 2001-1-2T3:04:05 a:b http://h/ a#b -1a 1a 0x 0b 123456789012345678901234567890 + e3 \
    1,2 12e03 685.230_15e+03 190:20:30 190:20:30.15 !a @a ä #a %a ?a :a key:";

const DOCUMENTS: &[&str] = &[
    "",
    "---\n",
    "# only a comment\n",
    "a",
    "a: 1\nb: 2\n",
    "a:\n- 1\n- 2\n",
    "a:\n  b:\n    c: [1, {d: e}]\n",
    "a: 1\na: 2\n",
    "a: &x {b: 1}\nc: *x\n",
    "a: &x {b: 1, c: 2}\nd: {<<: *x, c: 3}\n",
    "a: &x {b: 1}\nd: &y {b: 2, e: 3}\nf: {<<: [*x, *y]}\n",
    "a: {<<: 1}\n",
    "a: {<<: [1]}\n",
    "a: <<\n",
    "- <<\n",
    "'<<': 1\n",
    "a: &x 1\nb: &x 2\n",
    "a: *x\n",
    "a: &x [*x]\n",
    "a: |\n  one\n  two\n",
    "a: |-\n  one\n\n  two\n\n",
    "a: |+\n  one\n\n",
    "a: |2\n   one\n",
    "a: >\n  one\n  two\n\n  three\n   four\n",
    "a: >-\n  one\n  two\n",
    "a: 'it''s'\n",
    "a: \"x\\ty\\u00e4\\x41\\n\"\n",
    "a: \"\\d\"\n",
    "a: \"one\n  two\"\n",
    "a: 'one\n\n  two'\n",
    "a: one\n  two\n",
    "a: one\n\n  two\nb: 1\n",
    "? a\n: b\n",
    "? [a]\n: b\n",
    "{a: 1}: b\n",
    "a: {{ b }}\n",
    "a: {b: 1, c}\n",
    "a: [1, 2,]\n",
    "a: [1,, 2]\n",
    "a: {b: 1,}\n",
    "a: [1, 2\n",
    "a: {b: 1\n",
    "a: b: c\n",
    "a: 'b\n",
    "a: b #c\n",
    "a: b#c\n",
    "a:b\n",
    "a: 1\n b: 2\n",
    "a:\n  b: 1\n c: 2\n",
    "- a\nb: 1\n",
    "a:\n- 1\n b: 2\n",
    "\ta: 1\n",
    "a:\t1\n",
    "a: 1\t\n",
    "a: 1 \t# c\n",
    "a:\n\t- 1\n",
    "a:\n  - 1\n\t- 2\n",
    "- \ta\n",
    "a: [1,\t2]\n",
    "a: \"x\ty\"\n",
    "a: 'x\ty'\n",
    "a: x\ty\n",
    "a: |\n  x\ty\n",
    "a: |\n  x\n  \ty\n",
    "a: |\n\tx\n",
    "a: 1 # c\td\n",
    "#\tc\na: 1\n",
    "a: 1\n\t\nb: 2\n",
    "a: 1\n---\nb: 2\n",
    "---\na: 1\n...\n",
    "---\na: 1\n...\n---\nb: 1\n",
    "a: 1\n...\nb: 2\n",
    "--- a\n",
    "--- |\n a\n",
    "%YAML 1.1\n---\na: 1\n",
    "%YAML 2.0\n---\na: 1\n",
    "a: !!str 1\n",
    "a: !!int '1'\n",
    "a: !!float 1\n",
    "a: !!bool 'yes'\n",
    "a: !!null ''\n",
    "a: !!binary aGVsbG8=\n",
    "a: !!binary |\n  aGVs\n  bG8=\n",
    "a: !!set {b, c}\n",
    "a: !!omap [b: 1]\n",
    "a: !!python/object:os.system x\n",
    "a: !mine x\n",
    "a: ! x\n",
    "a: !!map {b: 1}\n",
    "a: !!seq [1]\n",
    "a: !!seq {b: 1}\n",
    "a: @b\n",
    "a: `b`\n",
    "a: %b\n",
    "a: *\n",
    "a: &b\n",
    "a: - b\n",
    "a: ? b\n",
    "a: -b\n",
    "a: [a:b, http://h/:80, x y]\n",
    "a: [-1, -a, - b]\n",
    "{a:1}\n",
    "{\"a\":1}\n",
    "{a: , b: }\n",
    "[a: 1, b]\n",
    "[? a : b]\n",
    "a: 'b' c\n",
    "a: \"b\": c\n",
    "\"a\": 1\n",
    "'a' : 1\n",
    "a : 1\n",
    "1: a\nyes: b\n~: c\n2001-01-01: d\n1.5: e\n",
    "1: a\n1: b\n",
    "a: \u{7f}\n",
    "a: \"\u{1}\"\n",
    "\u{feff}a: 1\n",
    "a: \u{1f600}\n",
    "a: 1\r\nb: 2\r\n",
    "a: |\r\n  x\r\n  y\r\n",
    "a: >\n\n  x\n",
    "a:\n  - b\n  -\n  - c\n",
    "a:\n  -\n    b: 1\n    c: 2\n",
    "- - a\n  - b\n- c\n",
    "- a: 1\n  b: 2\n-\n  c: 3\n",
    "a: 'x'\nb: \"y\"\nc: z\n",
    "a: \"\\/\"\n",
    "a: \"x\\\n  y\"\n",
    "a: [\n1,\n2\n]\n",
    "a: {\nb: 1\n}\n",
    "a: 'x\ny'\n",
    "a: foo: \n",
    "?\n",
    ": a\n",
    "a: b\n: c\n",
    "{: a}\n",
    "{a,: b}\n",
    "a: |\n  x",
    "a: >\n  x\n  y",
    "-\n",
    "a:\n  |\n  x\n",
    "a: !!str\n",
    "a: ''\n",
    "a: \"\"\n",
    "key with spaces: 1\n",
    "a, b: 1\n",
    "[a]: 1\n",
    "a: [b, c]: d\n",
    "a: #b\n",
    "a: |#b\n  x\n",
    "a: | #b\n  x\n",
    "a: |\n x\n  y\n z\n",
    "a: |\n   x\n  y\n",
    "a: \n  'x'\n",
    "a: x\n# c\n  y\n",
    "a: [x # c\n , y]\n",
    "a: [x y\n z]\n",
    "]\n",
    "}\n",
    "a: ]\n",
    "a: b]\n",
    "a: b, c\n",
    "a: !\n",
    "a: ! 1\nb: ! '1'\n",
    "a: [wget, -O, /x, http://h/f?id=3]\n",
    "a: {b: c?d}\n",
    "a: {b?c: d}\n",
    "a: [b ?c]\n",
    "a: [b\n ?c]\n",
    "a: [b?]\n",
    "a: [-?]\n",
    "a: {b: ?c}\n",
    "a: [b, {c: [d?e]}]\n",
    "a: [{b: c}, d?e: f]\n",
    "a: ['b?c', \"d?e\", ? f]\n",
    "a:\n- [b]\n- c?d\n- e ?f\ng?h: [i]\n",
    "a: ?b\n",
];

/// What nobody writes, and is read otherwise: refused here and read by PyYAML, since YAML 1.2 wants a
/// space or a key there; or the other way round.
const REFUSED_HERE: &[&str] = &["{a:[b]}\n", "[a]#\n", "?\n: a\n", "[?a]\n", "{?a: b}\n"];
const REFUSED_THERE: &[&str] = &["a: \u{85}b\n", "a: {b\n c: d}\n", "%Y*aML 1.1\n---\na: 1\n"];

#[test]
fn what_differs_from_pyyaml_is_known() {
    if !has_pyyaml() {
        skip!("python3 has no module `yaml`");
    }
    for (text, expected) in REFUSED_HERE.iter().zip(oracle(REFUSED_HERE)) {
        assert_ne!(expected, "refused", "{text:?}");
        assert_eq!(ours(text), "refused", "{text:?}");
    }
    for (text, expected) in REFUSED_THERE.iter().zip(oracle(REFUSED_THERE)) {
        assert_eq!(expected, "refused", "{text:?}");
        assert_ne!(ours(text), "refused", "{text:?}");
    }
}

#[test]
fn scalars_and_documents_mean_what_they_mean_to_pyyaml() {
    if !has_pyyaml() {
        skip!("python3 has no module `yaml`");
    }
    let scalars: Vec<String> =
        SCALARS.split_whitespace().map(|text| format!("a: {text}\n")).collect();
    let mut texts: Vec<&str> = scalars.iter().map(String::as_str).collect();
    texts.extend(DOCUMENTS);
    let expected = oracle(&texts);
    let wrong: BTreeMap<&str, (String, String)> = texts
        .into_iter()
        .zip(expected)
        .map(|(text, expected)| (text, (ours(text), expected)))
        .filter(|(_, (ours, expected))| ours != expected)
        .collect();
    assert!(wrong.is_empty(), "text, ours, PyYAML's: {wrong:#?}");
}

#[test]
fn the_corpus_means_what_it_means_to_pyyaml() {
    let Some(corpus) = corpus().filter(|_| has_pyyaml()) else {
        skip!("no corpus, or python3 has no module `yaml`");
    };
    let mut texts = Vec::new();
    for folder in ["examples", "examples/seed", "data/merge_sources"] {
        for entry in fs_err::read_dir(corpus.join("cloud-init").join(folder)).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                texts.push(fs_err::read_to_string(path).unwrap());
            }
        }
    }
    assert!(texts.len() > 50, "the corpus is there");
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let expected = oracle(&texts);
    for (text, expected) in texts.into_iter().zip(expected) {
        assert_eq!(ours(text), expected, "{text}");
    }
}

#[test]
fn what_is_wrong_has_its_place() {
    let place = |text: &str| document(text).map(|_| ()).unwrap_err();
    for (text, line, column, what) in [
        ("a: 1\nb:\n\t- 1\n", 3, 1, "a tab"),
        ("a: 1 \t# c\n", 1, 6, "a tab"),
        ("a:\n  - b\n\t- c\n", 3, 1, "a tab"),
        ("a: b\n\tc: d\n", 2, 1, "a tab"),
        ("a: {{ b }}\n", 1, 5, "a mapping as a key"),
        ("a: \u{7f}\n", 1, 4, "U+007F"),
        ("a: 1\n---\nb: 1\n", 2, 1, "a second document"),
        ("a: =\n", 1, 4, "`=`"),
        ("a:\n- [wget, http://h/f?id=3]\n", 2, 20, "a `?`"),
        ("a: 2001-13-45\n", 1, 4, "looks like a date"),
        ("a: &x 1\nb: &x 2\n", 2, 4, "stands twice"),
    ] {
        let flaw = place(text);
        assert_eq!((flaw.mark.line, flaw.mark.column), (line, column), "{text:?}: {flaw:?}");
        assert!(flaw.what.contains(what), "{text:?}: {flaw:?}");
    }
}

#[test]
fn a_repeated_key_is_told_and_the_last_one_counts() {
    let read = document("a: 1\nb: {c: 1, c: 2}\na: 3\n").unwrap();
    let lines: Vec<usize> = read.flaws.iter().map(|flaw| flaw.mark.line).collect();
    assert_eq!(lines, [2, 3]);
    assert_eq!(read.root.unwrap().get("a").unwrap().value, Value::Int(Some(3)));
}

#[test]
fn aliases_that_multiply_and_deep_nesting_end_early() {
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..20 {
        let alias = format!("*a{}", level - 1);
        bomb += &format!("a{level}: &a{level} [{}]\n", [alias.as_str(); 10].join(", "));
    }
    assert!(document(&bomb).unwrap_err().what.contains("aliases"));
    for nested in ["[".repeat(100_000), "- ".repeat(100_000), "{a: ".repeat(100_000)] {
        document(&nested).unwrap_err();
    }
}
