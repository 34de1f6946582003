//! What the processor architecture fixes: the memory map, the tables that the guest finds in
//! memory, the state in which a processor begins. Plain data; nothing here knows KVM's handles.

pub(crate) mod x86_64;
