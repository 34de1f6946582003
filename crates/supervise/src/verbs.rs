//! What a user's `start`, `stop` and `restart` do to a machine under its run strategy: which strategy it
//! has afterwards, and what is asked of its supervisor; or why it is refused. Pure, and in two editions.
//!
//! Of the strategy afterwards, as the documentation of OpenShift Virtualization 2.6 has it
//! ([`Compat::Documented`], the default), `–` standing for what has no effect:
//!
//! | | start | stop | restart |
//! |---|---|---|---|
//! | Always | – | Halted | Always |
//! | RerunOnFailure | – | Halted | RerunOnFailure |
//! | Manual | Manual | Manual | Manual |
//! | Halted | Always | – | – |
//!
//! As KubeVirt's API server answers today ([`Compat::Current`], `pkg/virt-api/rest/lifecycle.go`):
//!
//! | | start | stop | restart |
//! |---|---|---|---|
//! | Always | 409 | Halted | Always |
//! | RerunOnFailure | same; 409 after a failure | same | same |
//! | Manual | same | same | same |
//! | Halted | Always | 409 | 409 |
//! | Once | 409 | Halted | 409 |
//!
//! The documentation knows no Once; its row is today's in both. What has no effect is told, as a refusal
//! is, since a command that silently does nothing is no answer.

use bootyard_spec::RunStrategy;

/// Whose rules count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Compat {
    /// The table of the documentation.
    #[default]
    Documented,
    /// The code of today.
    Current,
}

/// What a user asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verb {
    /// Run it.
    Start,
    /// End it.
    Stop,
    /// End it and run it again.
    Restart,
}

impl Verb {
    /// Every verb.
    pub const ALL: [Self; 3] = [Self::Start, Self::Stop, Self::Restart];
}

/// The last instance of a machine, as far as verbs care.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Instance {
    /// It never ran.
    None,
    /// It is starting, runs, or waits to be started again.
    Active,
    /// It is on its way to its end.
    Stopping,
    /// The guest powered itself off, or a user stopped it.
    Succeeded,
    /// It crashed, or its machine failed.
    Failed,
}

impl Instance {
    /// Every state.
    pub const ALL: [Self; 5] =
        [Self::None, Self::Active, Self::Stopping, Self::Succeeded, Self::Failed];

    const fn is_active(self) -> bool {
        matches!(self, Self::Active | Self::Stopping)
    }

    const fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed)
    }
}

/// What is asked of the supervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Request {
    /// Start the machine.
    Start,
    /// Stop it.
    Stop,
    /// Stop it, and start it again.
    StopAndStart,
}

/// What a verb does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Answer {
    /// The strategy from now on.
    pub strategy: RunStrategy,
    /// What is asked of the supervisor.
    pub request: Request,
}

/// Why a verb is refused (status 409 of the API), in upstream's words where it has some.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[error("{0}")]
pub struct Refusal(&'static str);

const RUNNING: Refusal = Refusal("VM is already running");
const NOT_RUNNING: Refusal = Refusal("VM is not running");

impl Compat {
    /// What `verb` does to a machine with this strategy and this last instance.
    pub fn answer(
        self,
        strategy: RunStrategy,
        instance: Instance,
        verb: Verb,
    ) -> Result<Answer, Refusal> {
        match (verb, self) {
            (Verb::Start, _) if instance.is_active() => Err(RUNNING),
            (Verb::Start, Self::Documented) => start_as_documented(strategy, instance),
            (Verb::Start, Self::Current) => start_now(strategy, instance),
            (Verb::Stop, Self::Documented) => stop_as_documented(strategy, instance),
            (Verb::Stop, Self::Current) => stop_now(strategy, instance),
            (Verb::Restart, _) => restart(strategy, instance),
        }
    }
}

const fn asked(strategy: RunStrategy, request: Request) -> Result<Answer, Refusal> {
    Ok(Answer { strategy, request })
}

const fn start_as_documented(strategy: RunStrategy, instance: Instance) -> Result<Answer, Refusal> {
    match strategy {
        RunStrategy::Manual => asked(strategy, Request::Start),
        RunStrategy::Halted => asked(RunStrategy::Always, Request::Start),
        RunStrategy::Always => Err(Refusal("Always does not support manual start requests")),
        // It is off for good only once its guest has powered itself off: nothing else could start it.
        RunStrategy::RerunOnFailure => match instance {
            Instance::Succeeded => asked(strategy, Request::Start),
            _ => Err(Refusal("RerunOnFailure does not support manual start requests")),
        },
        RunStrategy::Once => Err(Refusal("Once does not support manual start requests")),
    }
}

const fn start_now(strategy: RunStrategy, instance: Instance) -> Result<Answer, Refusal> {
    match strategy {
        RunStrategy::Always => Err(Refusal("Always does not support manual start requests")),
        RunStrategy::Once => Err(Refusal("Once does not support manual start requests")),
        RunStrategy::RerunOnFailure if matches!(instance, Instance::Failed) => {
            Err(Refusal("RerunOnFailure does not support starting VM from failed state"))
        }
        RunStrategy::RerunOnFailure | RunStrategy::Manual if instance.is_final() => {
            asked(strategy, Request::StopAndStart)
        }
        RunStrategy::RerunOnFailure | RunStrategy::Manual => asked(strategy, Request::Start),
        RunStrategy::Halted => asked(RunStrategy::Always, Request::Start),
    }
}

const fn stop_as_documented(strategy: RunStrategy, instance: Instance) -> Result<Answer, Refusal> {
    match strategy {
        RunStrategy::Halted if instance.is_active() => asked(strategy, Request::Stop),
        RunStrategy::Halted => Err(NOT_RUNNING),
        RunStrategy::Manual if instance.is_active() => asked(strategy, Request::Stop),
        RunStrategy::Manual => Err(NOT_RUNNING),
        // A machine that is only about to be started again is ended by this as well.
        RunStrategy::Always | RunStrategy::RerunOnFailure | RunStrategy::Once => {
            asked(RunStrategy::Halted, Request::Stop)
        }
    }
}

const fn stop_now(strategy: RunStrategy, instance: Instance) -> Result<Answer, Refusal> {
    match strategy {
        RunStrategy::Always | RunStrategy::Once => asked(RunStrategy::Halted, Request::Stop),
        RunStrategy::RerunOnFailure | RunStrategy::Manual if instance.is_active() => {
            asked(strategy, Request::Stop)
        }
        RunStrategy::Halted if instance.is_active() => {
            Err(Refusal("Halted only supports manual stop requests with a shorter graceperiod"))
        }
        RunStrategy::RerunOnFailure | RunStrategy::Manual | RunStrategy::Halted => Err(NOT_RUNNING),
    }
}

const fn restart(strategy: RunStrategy, instance: Instance) -> Result<Answer, Refusal> {
    match strategy {
        RunStrategy::Halted => {
            Err(Refusal("RunStrategy Halted does not support manual restart requests"))
        }
        RunStrategy::Once => {
            Err(Refusal("RunStrategy Once does not support manual restart requests"))
        }
        _ if matches!(instance, Instance::None) => Err(NOT_RUNNING),
        _ => asked(strategy, Request::StopAndStart),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A verb's row for every strategy, an instance at a time.
    fn table(compat: Compat, verb: Verb) -> String {
        let line = |strategy: RunStrategy| {
            let cells =
                Instance::ALL.map(|instance| match compat.answer(strategy, instance, verb) {
                    Ok(Answer { strategy, request }) => format!("{} {request:?}", strategy.name()),
                    Err(Refusal(why)) => format!("! {why}"),
                });
            format!("{}: {}\n", strategy.name(), cells.join(" | "))
        };
        RunStrategy::ALL.into_iter().map(line).collect()
    }

    #[test]
    fn verbs_do_what_the_documentation_says() {
        let compat = Compat::Documented;
        expect_test::expect![[r#"
            Always: ! Always does not support manual start requests | ! VM is already running | ! VM is already running | ! Always does not support manual start requests | ! Always does not support manual start requests
            Halted: Always Start | ! VM is already running | ! VM is already running | Always Start | Always Start
            Manual: Manual Start | ! VM is already running | ! VM is already running | Manual Start | Manual Start
            Once: ! Once does not support manual start requests | ! VM is already running | ! VM is already running | ! Once does not support manual start requests | ! Once does not support manual start requests
            RerunOnFailure: ! RerunOnFailure does not support manual start requests | ! VM is already running | ! VM is already running | RerunOnFailure Start | ! RerunOnFailure does not support manual start requests
        "#]].assert_eq(&table(compat, Verb::Start));
        expect_test::expect![[r#"
            Always: Halted Stop | Halted Stop | Halted Stop | Halted Stop | Halted Stop
            Halted: ! VM is not running | Halted Stop | Halted Stop | ! VM is not running | ! VM is not running
            Manual: ! VM is not running | Manual Stop | Manual Stop | ! VM is not running | ! VM is not running
            Once: Halted Stop | Halted Stop | Halted Stop | Halted Stop | Halted Stop
            RerunOnFailure: Halted Stop | Halted Stop | Halted Stop | Halted Stop | Halted Stop
        "#]].assert_eq(&table(compat, Verb::Stop));
        expect_test::expect![[r#"
            Always: ! VM is not running | Always StopAndStart | Always StopAndStart | Always StopAndStart | Always StopAndStart
            Halted: ! RunStrategy Halted does not support manual restart requests | ! RunStrategy Halted does not support manual restart requests | ! RunStrategy Halted does not support manual restart requests | ! RunStrategy Halted does not support manual restart requests | ! RunStrategy Halted does not support manual restart requests
            Manual: ! VM is not running | Manual StopAndStart | Manual StopAndStart | Manual StopAndStart | Manual StopAndStart
            Once: ! RunStrategy Once does not support manual restart requests | ! RunStrategy Once does not support manual restart requests | ! RunStrategy Once does not support manual restart requests | ! RunStrategy Once does not support manual restart requests | ! RunStrategy Once does not support manual restart requests
            RerunOnFailure: ! VM is not running | RerunOnFailure StopAndStart | RerunOnFailure StopAndStart | RerunOnFailure StopAndStart | RerunOnFailure StopAndStart
        "#]].assert_eq(&table(compat, Verb::Restart));
    }

    #[test]
    fn verbs_do_what_the_api_server_does_today() {
        let compat = Compat::Current;
        expect_test::expect![[r#"
            Always: ! Always does not support manual start requests | ! VM is already running | ! VM is already running | ! Always does not support manual start requests | ! Always does not support manual start requests
            Halted: Always Start | ! VM is already running | ! VM is already running | Always Start | Always Start
            Manual: Manual Start | ! VM is already running | ! VM is already running | Manual StopAndStart | Manual StopAndStart
            Once: ! Once does not support manual start requests | ! VM is already running | ! VM is already running | ! Once does not support manual start requests | ! Once does not support manual start requests
            RerunOnFailure: RerunOnFailure Start | ! VM is already running | ! VM is already running | RerunOnFailure StopAndStart | ! RerunOnFailure does not support starting VM from failed state
        "#]].assert_eq(&table(compat, Verb::Start));
        expect_test::expect![[r#"
            Always: Halted Stop | Halted Stop | Halted Stop | Halted Stop | Halted Stop
            Halted: ! VM is not running | ! Halted only supports manual stop requests with a shorter graceperiod | ! Halted only supports manual stop requests with a shorter graceperiod | ! VM is not running | ! VM is not running
            Manual: ! VM is not running | Manual Stop | Manual Stop | ! VM is not running | ! VM is not running
            Once: Halted Stop | Halted Stop | Halted Stop | Halted Stop | Halted Stop
            RerunOnFailure: ! VM is not running | RerunOnFailure Stop | RerunOnFailure Stop | ! VM is not running | ! VM is not running
        "#]].assert_eq(&table(compat, Verb::Stop));
        expect_test::expect![[r#"
            Always: ! VM is not running | Always StopAndStart | Always StopAndStart | Always StopAndStart | Always StopAndStart
            Halted: ! RunStrategy Halted does not support manual restart requests | ! RunStrategy Halted does not support manual restart requests | ! RunStrategy Halted does not support manual restart requests | ! RunStrategy Halted does not support manual restart requests | ! RunStrategy Halted does not support manual restart requests
            Manual: ! VM is not running | Manual StopAndStart | Manual StopAndStart | Manual StopAndStart | Manual StopAndStart
            Once: ! RunStrategy Once does not support manual restart requests | ! RunStrategy Once does not support manual restart requests | ! RunStrategy Once does not support manual restart requests | ! RunStrategy Once does not support manual restart requests | ! RunStrategy Once does not support manual restart requests
            RerunOnFailure: ! VM is not running | RerunOnFailure StopAndStart | RerunOnFailure StopAndStart | RerunOnFailure StopAndStart | RerunOnFailure StopAndStart
        "#]].assert_eq(&table(compat, Verb::Restart));
    }
}
