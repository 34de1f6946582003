//! GRUB's script language: text to a tree of commands.
//!
//! Words are split at blanks; a line end or `;` ends a command; `'…'` quotes everything, `"…"` all
//! but variables; a backslash quotes one character. A word that is nothing but `{` or `}` opens or
//! closes a block.

use std::rc::Rc;

use super::Line;
use crate::{Error, ErrorKind};

/// Blocks within blocks. `grub-mkconfig` nests four deep.
const DEPTH_MAX: u32 = 16;

/// Commands one after the other. Shared, because an entry's body outlives the script's run.
pub(crate) type Block = Rc<[Command]>;

/// One command and the line on which it begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Command {
    pub(crate) line: u32,
    pub(crate) action: Action,
}

/// What a command does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// A built-in command, a function or an assignment.
    Run(Vec<Word>),
    /// The first block whose condition's last command succeeds, else the last one.
    If { arms: Vec<(Block, Block)>, otherwise: Block },
    /// The body once for each word.
    For { name: String, words: Vec<Word>, body: Block },
    /// The body as long as the condition succeeds, or until it does.
    While { until: bool, condition: Block, body: Block },
    /// The definition of a function.
    Function { name: String, body: Block },
    /// `hiddenentry`, which stands for a key of the menu.
    Hidden,
    /// `menuentry` or `submenu`: the words after it, and its body.
    Item { submenu: bool, words: Vec<Word>, body: Block },
}

/// A word: parts that are joined after variables are replaced.
pub(crate) type Word = Vec<Part>;

/// A part of a word. What is not quoted is split at blanks after replacing, and vanishes if empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) text: Text,
    pub(crate) quoted: bool,
}

/// What a part stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Text {
    Literal(String),
    Variable(String),
}

/// Parses a script. `file` is its name in messages.
pub(crate) fn parse(text: &str, file: &Rc<str>) -> Result<Block, Error> {
    let tokens = Lexer { text, line: 1, file }.tokens()?;
    let mut parser = Parser { tokens, at: 0, depth: 0, file };
    let block = parser.block(&[])?;
    match parser.peek() {
        None => Ok(block),
        Some(_) => Err(parser.here().error("expected a command, got `}`")),
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Word(Word),
    /// A line end or `;`.
    End,
    Open,
    Close,
}

impl Token {
    /// The text of a word that is one plain, unquoted literal: what may be a keyword.
    fn keyword(&self) -> Option<&str> {
        match self {
            Self::Word(word) => match word.as_slice() {
                [Part { text: Text::Literal(text), quoted: false }] => Some(text),
                _ => None,
            },
            _ => None,
        }
    }
}

struct Lexer<'a> {
    /// What is still to be read.
    text: &'a str,
    line: u32,
    file: &'a Rc<str>,
}

impl Lexer<'_> {
    fn tokens(mut self) -> Result<Vec<(u32, Token)>, Error> {
        let mut tokens = Vec::new();
        while let Some(c) = self.peek() {
            let line = self.line;
            match c {
                '\n' | ';' => {
                    self.next();
                    tokens.push((line, Token::End));
                }
                '#' => {
                    let end = self.text.find('\n').unwrap_or(self.text.len());
                    self.text = &self.text[end..];
                }
                _ if c.is_whitespace() => {
                    self.next();
                }
                _ => {
                    let word = self.word()?;
                    let token = Token::Word(word);
                    tokens.push(match token.keyword() {
                        Some("{") => (line, Token::Open),
                        Some("}") => (line, Token::Close),
                        // What is left of a line that only continues the next one.
                        Some("") => continue,
                        _ => (line, token),
                    });
                }
            }
        }
        Ok(tokens)
    }

    fn peek(&self) -> Option<char> {
        self.text.chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.text = &self.text[c.len_utf8()..];
        self.line += u32::from(c == '\n');
        Some(c)
    }

    fn word(&mut self) -> Result<Word, Error> {
        let mut word = Vec::new();
        while let Some(c) = self.peek() {
            match c {
                ';' => break,
                _ if c.is_whitespace() => break,
                '\'' => {
                    self.next();
                    let text = self.single_quoted()?;
                    push(&mut word, &text, true);
                }
                '"' => {
                    self.next();
                    self.double_quoted(&mut word)?;
                }
                '\\' => {
                    self.next();
                    match self.next() {
                        Some('\n') => push(&mut word, "", false),
                        Some(c) => push(&mut word, c.encode_utf8(&mut [0; 4]), true),
                        None => {}
                    }
                }
                '$' => {
                    self.next();
                    self.variable(&mut word, false)?;
                }
                _ => {
                    self.next();
                    push(&mut word, c.encode_utf8(&mut [0; 4]), false);
                }
            }
        }
        Ok(word)
    }

    fn single_quoted(&mut self) -> Result<String, Error> {
        let open = self.here();
        let Some(len) = self.text.find('\'') else {
            return Err(open.error("the quote `'` has no end"));
        };
        let (text, rest) = (&self.text[..len], &self.text[len + 1..]);
        let lines = text.bytes().filter(|byte| *byte == b'\n').count();
        self.line += u32::try_from(lines).unwrap_or(u32::MAX);
        self.text = rest;
        Ok(text.to_owned())
    }

    fn double_quoted(&mut self, word: &mut Word) -> Result<(), Error> {
        let open = self.here();
        push(word, "", true);
        loop {
            match self.next() {
                None => return Err(open.error("the quote `\"` has no end")),
                Some('"') => return Ok(()),
                Some('$') => self.variable(word, true)?,
                Some('\\') => match self.peek() {
                    Some(c @ ('$' | '"' | '\\')) => {
                        self.next();
                        push(word, c.encode_utf8(&mut [0; 4]), true);
                    }
                    Some('\n') => {
                        self.next();
                    }
                    _ => push(word, "\\", true),
                },
                Some(c) => push(word, c.encode_utf8(&mut [0; 4]), true),
            }
        }
    }

    /// Reads what follows a `$`: `{name}`, `name`, a digit or `?`. Anything else leaves the sign.
    fn variable(&mut self, word: &mut Word, quoted: bool) -> Result<(), Error> {
        let braced = self.text.starts_with('{');
        let name = if braced {
            let Some(len) = self.text.find('}') else {
                return Err(self.here().error("the name after `${` has no `}`"));
            };
            self.text[1..len].to_owned()
        } else if self.text.starts_with('?') {
            "?".to_owned()
        } else {
            let rest = self.text.chars();
            rest.take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect()
        };
        if name.contains(|c: char| c.is_whitespace()) {
            return Err(self.here().error("the name of a variable has blanks"));
        }
        if name.is_empty() && !braced {
            push(word, "$", quoted);
            return Ok(());
        }
        self.text = &self.text[name.len() + if braced { 2 } else { 0 }..];
        word.push(Part { text: Text::Variable(name), quoted });
        Ok(())
    }

    fn here(&self) -> Line {
        Line { file: Rc::clone(self.file), number: self.line }
    }
}

/// Appends literal text, joining it to a part of the same kind.
fn push(word: &mut Word, text: &str, quoted: bool) {
    match word.last_mut() {
        Some(Part { text: Text::Literal(before), quoted: same }) if *same == quoted => {
            before.push_str(text);
        }
        _ => word.push(Part { text: Text::Literal(text.to_owned()), quoted }),
    }
}

struct Parser<'a> {
    tokens: Vec<(u32, Token)>,
    at: usize,
    depth: u32,
    file: &'a Rc<str>,
}

impl Parser<'_> {
    /// Commands up to one of the keywords `ends`, a `}` or the end; none of them is consumed.
    fn block(&mut self, ends: &[&str]) -> Result<Block, Error> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            let what = format!("expected at most {DEPTH_MAX} blocks within each other");
            return Err(self.here().error_of(ErrorKind::TooLarge, what));
        }
        let mut commands = Vec::new();
        loop {
            match self.peek() {
                Some(Token::End) => self.at += 1,
                None | Some(Token::Close) => break,
                Some(token) if token.keyword().is_some_and(|word| ends.contains(&word)) => break,
                Some(_) => commands.push(self.command()?),
            }
        }
        self.depth -= 1;
        Ok(commands.into())
    }

    fn command(&mut self) -> Result<Command, Error> {
        let line = self.here().number;
        let action = match self.peek().and_then(Token::keyword) {
            Some("if") => self.conditional()?,
            Some("for") => self.for_loop()?,
            Some("while") => self.while_loop(false)?,
            Some("until") => self.while_loop(true)?,
            Some("function") => {
                self.at += 1;
                let name = self.name()?;
                Action::Function { name, body: self.braced()? }
            }
            Some(word @ ("menuentry" | "submenu")) => {
                let submenu = word == "submenu";
                self.at += 1;
                let words = self.words();
                Action::Item { submenu, words, body: self.braced()? }
            }
            Some("hiddenentry") => {
                self.words();
                self.braced()?;
                Action::Hidden
            }
            _ => self.simple()?,
        };
        Ok(Command { line, action })
    }

    fn simple(&mut self) -> Result<Action, Error> {
        let words = self.words();
        match self.peek() {
            Some(Token::Open) => Err(self.here().error("expected a command, got `{`")),
            _ => Ok(Action::Run(words)),
        }
    }

    fn conditional(&mut self) -> Result<Action, Error> {
        let mut arms = Vec::new();
        loop {
            self.at += 1;
            let condition = self.block(&["then"])?;
            self.expect("then")?;
            arms.push((condition, self.block(&["elif", "else", "fi"])?));
            if self.peek().and_then(Token::keyword) != Some("elif") {
                break;
            }
        }
        let mut otherwise = Block::default();
        if self.peek().and_then(Token::keyword) == Some("else") {
            self.at += 1;
            otherwise = self.block(&["fi"])?;
        }
        self.expect("fi")?;
        Ok(Action::If { arms, otherwise })
    }

    fn for_loop(&mut self) -> Result<Action, Error> {
        self.at += 1;
        let name = self.name()?;
        self.expect("in")?;
        let words = self.words();
        Ok(Action::For { name, words, body: self.done()? })
    }

    fn while_loop(&mut self, until: bool) -> Result<Action, Error> {
        self.at += 1;
        let condition = self.block(&["do"])?;
        Ok(Action::While { until, condition, body: self.done()? })
    }

    /// `do …; done`.
    fn done(&mut self) -> Result<Block, Error> {
        self.skip_ends();
        self.expect("do")?;
        let body = self.block(&["done"])?;
        self.expect("done")?;
        Ok(body)
    }

    /// `{ … }`.
    fn braced(&mut self) -> Result<Block, Error> {
        self.skip_ends();
        if self.peek() != Some(&Token::Open) {
            return Err(self.here().error("expected `{`"));
        }
        let open = self.here();
        self.at += 1;
        let body = self.block(&[])?;
        if self.peek() != Some(&Token::Close) {
            return Err(open.error("the block has no `}`"));
        }
        self.at += 1;
        Ok(body)
    }

    fn words(&mut self) -> Vec<Word> {
        let mut words = Vec::new();
        while let Some(Token::Word(word)) = self.peek() {
            words.push(word.clone());
            self.at += 1;
        }
        words
    }

    fn name(&mut self) -> Result<String, Error> {
        let name = self.peek().and_then(Token::keyword).map(str::to_owned);
        let name = name.ok_or_else(|| self.here().error("expected a name"))?;
        self.at += 1;
        Ok(name)
    }

    fn expect(&mut self, keyword: &str) -> Result<(), Error> {
        if self.peek().and_then(Token::keyword) != Some(keyword) {
            return Err(self.here().error(format_args!("expected `{keyword}`")));
        }
        self.at += 1;
        Ok(())
    }

    fn skip_ends(&mut self) {
        while self.peek() == Some(&Token::End) {
            self.at += 1;
        }
    }

    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at).map(|(_, token)| token)
    }

    /// The line of the next token, or of the last one at the end.
    fn here(&self) -> Line {
        let token = self.tokens.get(self.at).or(self.tokens.last());
        Line { file: Rc::clone(self.file), number: token.map_or(1, |(line, _)| *line) }
    }
}
