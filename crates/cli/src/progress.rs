//! Shows an import's events: a bar on a terminal, a line now and then elsewhere, JSON lines for
//! programs. The last line, the report, is the command's result and not shown here.

#![expect(clippy::disallowed_methods, reason = "the rate on the screen needs the time")]

use std::cell::RefCell;
use std::time::{Duration, Instant};

use bootyard_import::{Event, Events, Moved, Phase, Progress};
use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::json::EventLine;
use crate::output;

/// How often a log gets a line: seldom enough for one of a long import to be read.
const LINE_EVERY: Duration = Duration::from_secs(5);
/// How often a program gets an event.
const JSON_EVERY: Duration = Duration::from_millis(500);
/// How often the bar moves, and how often it is drawn at most.
const BAR_EVERY: Duration = Duration::from_millis(100);
const BAR_HERTZ: u8 = 10;

/// Where events go.
pub(crate) struct Display {
    form: Form,
    state: RefCell<State>,
    started: Instant,
}

enum Form {
    Bar(ProgressBar),
    Lines,
    Json,
}

impl Form {
    const fn interval(&self) -> Duration {
        match self {
            Self::Bar(_) => BAR_EVERY,
            Self::Lines => LINE_EVERY,
            Self::Json => JSON_EVERY,
        }
    }
}

#[derive(Default)]
struct State {
    progress: Progress,
    shown_at: Option<Duration>,
}

impl Display {
    /// JSON if it was asked for, else a bar if standard error is a terminal, else lines.
    pub(crate) fn new(json: bool) -> Self {
        let form = if json {
            Form::Json
        } else if std::io::IsTerminal::is_terminal(&std::io::stderr()) {
            Form::Bar(bar())
        } else {
            Form::Lines
        };
        Self { form, state: RefCell::default(), started: Instant::now() }
    }

    /// How long it has been there.
    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Takes the bar from the screen and gives how long it all took.
    pub(crate) fn finish(&self) -> Duration {
        if let Form::Bar(bar) = &self.form {
            bar.finish_and_clear();
        }
        self.started.elapsed()
    }

    /// Shows what has moved when it is time again, and at the end.
    fn moved(&self, moved: Moved) {
        let now = self.started.elapsed();
        let mut state = self.state.borrow_mut();
        let since = state.shown_at.map_or(now, |at| now.saturating_sub(at));
        let is_last = moved.total == Some(moved.fetched) && !matches!(self.form, Form::Lines);
        if since < self.form.interval() && !is_last {
            return;
        }
        state.shown_at = Some(now);
        state.progress.update(now, moved);
        match &self.form {
            Form::Bar(bar) => draw(bar, &state.progress),
            Form::Lines => output::error(&format!("{}\n", line(&state.progress))),
            Form::Json => self.json(&EventLine::progress(&state.progress)),
        }
    }

    /// Shows that an upload goes on after a request that failed.
    pub(crate) fn retried(&self, count: u32, why: &str) {
        match self.form {
            Form::Lines => self.say(&format!("{why}; trying again (attempt {count})")),
            Form::Bar(_) | Form::Json => self.event(Event::Retried(count)),
        }
    }

    /// Shows a line that stays.
    fn say(&self, text: &str) {
        match &self.form {
            Form::Bar(bar) => bar.println(text),
            Form::Lines | Form::Json => output::error(&format!("{text}\n")),
        }
    }

    /// An event that its reader no longer wants is not worth failing an import for.
    fn json(&self, line: &EventLine<'_>) {
        let _ = output::json_line(line);
    }
}

impl Events for Display {
    fn event(&self, event: Event<'_>) {
        match (event, &self.form) {
            (Event::Moved(moved), _) => self.moved(moved),
            (Event::Resumed(at), form) => {
                let before = Moved { fetched: at, ..Moved::default() };
                self.state.borrow_mut().progress.update(Duration::ZERO, before);
                match form {
                    Form::Json => self.json(&EventLine::of(&event).unwrap_or_default()),
                    _ => self.say(&format!("going on after {}", HumanBytes(at))),
                }
            }
            (Event::StartedOver(why), Form::Bar(_) | Form::Lines) => {
                self.say(&format!("starting over: {why}"));
            }
            (event, Form::Json) => {
                if let Some(line) = EventLine::of(&event) {
                    self.json(&line);
                }
            }
            (Event::Phase(phase), Form::Bar(bar)) => {
                bar.set_prefix(phase.name());
                bar.tick();
            }
            // Of an import that is over in a moment a log needs the report only.
            (Event::Phase(phase), Form::Lines) if self.state.borrow().shown_at.is_some() => {
                output::error(&format!("{phase}\n"));
            }
            (Event::Retried(count), Form::Bar(bar)) => {
                bar.set_message(format!("reconnected {count}×"));
            }
            (Event::Retried(count), Form::Lines) => {
                output::error(&format!("the source broke off; reading on (attempt {count})\n"));
            }
            _ => {}
        }
    }
}

impl Drop for Display {
    fn drop(&mut self) {
        self.finish();
    }
}

fn bar() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(BAR_HERTZ));
    let spinner = ProgressStyle::with_template("{prefix:>12} {spinner} {msg}");
    bar.set_style(spinner.expect("the template is constant and right"));
    bar.set_prefix(Phase::Connecting.name());
    bar
}

fn draw(bar: &ProgressBar, progress: &Progress) {
    let moved = progress.moved();
    if let Some(total) = moved.total
        && bar.length() != Some(total)
    {
        let style = ProgressStyle::with_template("{prefix:>12} [{bar:32}] {bytes}/{msg}");
        bar.set_style(style.expect("the template is constant and right").progress_chars("=> "));
        bar.set_length(total);
    }
    bar.set_message(detail(progress));
    bar.set_position(moved.fetched);
}

/// `171.6 MiB, 84.2 MiB/s, 2 s left`.
fn detail(progress: &Progress) -> String {
    let moved = progress.moved();
    let mut text = HumanBytes(moved.total.unwrap_or(moved.fetched)).to_string();
    if let Some(rate) = progress.rate() {
        text += &format!(", {}/s", HumanBytes(rate));
    }
    if let Some(eta) = progress.eta() {
        text += &format!(", {} s left", eta.as_secs_f64().ceil());
    }
    text
}

fn line(progress: &Progress) -> String {
    let moved = progress.moved();
    let percent = progress.fraction().map(|f| format!("{:3.0} %, ", f * 100.0)).unwrap_or_default();
    format!("{percent}{} of {}", HumanBytes(moved.fetched), detail(progress))
}
