//! What only CD-ROM drives do (MMC-6): the tray, what is on the disc, and what happened to it.

use super::command::{Command, Failure};
use super::drive::{Drive, DriveKind, MediaEvent, Tray};
use super::{Sense, opcode};

/// The number of the track behind the last one.
const LEAD_OUT: u8 = 0xaa;
/// Data track, of which copies may not be made (as all say).
const DATA_TRACK: u8 = 0x14;
/// Blocks of the largest CD: 80 minutes.
const CD_BLOCKS_MAX: u64 = 80 * 60 * 75;

/// Profiles (MMC-6 table 92).
const PROFILE_CD: u16 = 0x08;
const PROFILE_DVD: u16 = 0x10;

/// The class of events that are about media, and its bit.
const EVENTS_MEDIA: u8 = 4;

/// Commands that disks do not have, or do otherwise.
pub(super) fn command(drive: &Drive, command: &mut Command<'_, '_>) -> Result<(), Failure> {
    match command.opcode() {
        opcode::READ_6 | opcode::READ_10 | opcode::READ_12 | opcode::READ_16 => drive.read(command),
        opcode::READ_CAPACITY_10 => drive.read_capacity_10(command),
        opcode::SYNCHRONIZE_CACHE_10 => drive.medium().map(drop).map_err(Failure::from),
        opcode::READ_TOC => read_toc(drive, command),
        opcode::GET_CONFIGURATION => get_configuration(drive, command),
        opcode::GET_EVENT_STATUS => get_event_status(drive, command),
        opcode::READ_DISC_INFORMATION => {
            drive.medium()?;
            let mut data = [0; 34];
            // Finished; one session with one track.
            (data[1], data[2], data[3], data[4], data[5], data[6]) = (32, 0x0e, 1, 1, 1, 1);
            data[7] = 0x20;
            command.answer(&data, command.number(7, 2))
        }
        opcode::MECHANISM_STATUS => {
            let open = if drive.tray() == Tray::Open { 0x10 } else { 0 };
            command.answer(&[0, open, 0, 0, 0, 1, 0, 0], command.number(8, 2))
        }
        opcode::SET_CD_SPEED => Ok(()),
        _ => Err(Sense::INVALID_OPCODE.into()),
    }
}

/// START STOP UNIT: a disk does not move, a tray does.
pub(super) fn start_stop(drive: &Drive, command: &Command<'_, '_>) -> Result<(), Failure> {
    let (start, load_eject) = (command.bit(4, 0), command.bit(4, 1));
    // Power conditions are of no concern.
    if drive.kind == DriveKind::Disk || command.byte(4) >> 4 != 0 || !load_eject {
        return Ok(());
    }
    let mut state = drive.state();
    if state.locked && !start && !state.open {
        return Err(Sense::REMOVAL_PREVENTED.into());
    }
    if state.open == start {
        state.open = !start;
        let event = if start { MediaEvent::NewMedia } else { MediaEvent::MediaRemoval };
        state.event = state.medium.is_some().then_some(event);
    }
    Ok(())
}

fn read_toc(drive: &Drive, command: &mut Command<'_, '_>) -> Result<(), Failure> {
    let medium = drive.medium()?;
    let in_time = command.bit(1, 1);
    let place = |block: u64| {
        let block = u32::try_from(block).unwrap_or(u32::MAX);
        if !in_time {
            return block.to_be_bytes();
        }
        // Time begins two seconds before the first block.
        let frames = block.saturating_add(150);
        let minutes = u8::try_from(frames / 75 / 60).unwrap_or(u8::MAX);
        [0, minutes, (frames / 75 % 60) as u8, (frames % 75) as u8]
    };
    let track = |number: u8, block: u64| {
        let mut entry = vec![0, DATA_TRACK, number, 0];
        entry.extend(place(block));
        entry
    };
    let end = drive.block_count(&*medium);
    // Old initiators say the format in the last byte.
    let format =
        if command.byte(2) & 0xf == 0 { command.byte(9) >> 6 } else { command.byte(2) & 0xf };
    let entries = match (format, command.byte(6)) {
        (0, 0..=1) => [track(1, 0), track(LEAD_OUT, end)].concat(),
        (0, LEAD_OUT) => track(LEAD_OUT, end),
        // Where the last session begins.
        (1, _) => track(1, 0),
        _ => return Err(Sense::INVALID_FIELD.into()),
    };
    let mut data = vec![0, entries.len() as u8 + 2, 1, 1];
    data.extend(entries);
    command.answer(&data, command.number(7, 2))
}

fn get_configuration(drive: &Drive, command: &mut Command<'_, '_>) -> Result<(), Failure> {
    let blocks = drive.medium().ok().map(|medium| drive.block_count(&*medium));
    let profile = match blocks {
        Some(..=CD_BLOCKS_MAX) => PROFILE_CD,
        Some(_) => PROFILE_DVD,
        None => 0,
    };
    let [high, dvd] = PROFILE_DVD.to_be_bytes();
    let cd = PROFILE_CD.to_be_bytes()[1];
    let current = |wanted| u8::from(profile == wanted);
    // Number, version and whether it is current, length, body.
    let features: [(u16, bool, Vec<u8>); 4] = [
        (0x00, true, vec![high, dvd, current(PROFILE_DVD), 0, high, cd, current(PROFILE_CD), 0]),
        // Core: SCSI.
        (0x01, true, vec![0, 0, 0, 1, 1, 0, 0, 0]),
        // Removable: a tray that loads and ejects, and can be locked.
        (0x03, true, vec![0x39, 0, 0, 0]),
        // Random readable: blocks of 2048 bytes, one at a time.
        (0x10, blocks.is_some(), vec![0, 0, 8, 0, 0, 1, 0, 0]),
    ];
    let (wanted, first) = (command.byte(1) & 3, command.number(2, 2) as u16);
    let mut data = vec![0, 0, 0, 0, 0, 0];
    data.extend(profile.to_be_bytes());
    for (number, current, body) in features {
        let asked = match wanted {
            0 => number >= first,
            1 => number >= first && current,
            2 => number == first,
            _ => return Err(Sense::INVALID_FIELD.into()),
        };
        if asked {
            data.extend(number.to_be_bytes());
            // Version 0, persistent unless it comes and goes with the medium.
            data.extend([u8::from(current) | u8::from(number != 0x10) << 1, body.len() as u8]);
            data.extend(body);
        }
    }
    let len = data.len() as u32 - 4;
    data[..4].copy_from_slice(&len.to_be_bytes());
    command.answer(&data, command.number(7, 2))
}

fn get_event_status(drive: &Drive, command: &mut Command<'_, '_>) -> Result<(), Failure> {
    // Only by polling.
    if !command.bit(1, 0) {
        return Err(Sense::INVALID_FIELD.into());
    }
    let supported = 1 << EVENTS_MEDIA;
    if command.byte(4) & supported == 0 {
        // No event available of those classes.
        return command.answer(&[0, 2, 0x80, supported], command.number(7, 2));
    }
    let mut state = drive.state();
    let code = state.event.take().map_or(0, |event| event as u8);
    let present = state.medium.is_some() && !state.open;
    let status = u8::from(state.open) | u8::from(present) << 1;
    drop(state);
    let data = [0, 6, EVENTS_MEDIA, supported, code, status, 0, 0];
    command.answer(&data, command.number(7, 2))
}
