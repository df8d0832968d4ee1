//! Where things lie in an arena, and what a descriptor's bytes mean. `docs/wire.md` says the same in words.
//!
//! Every number is little endian. The structs here are `repr(C)` without padding; [`layout_json`] exports
//! them, so that clients in other languages can be held equal.

use std::mem::{offset_of, size_of};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{FailureKind, Status, WireError};
use crate::tensor::{ALIGNMENT_BYTES, DType};

/// The most seeds of one layer: the width of a completion's masks.
pub const MAX_SEEDS: usize = 64;
/// The most dimensions a tensor in a descriptor may have.
pub const MAX_RANK: usize = 8;
/// Bytes of a descriptor in either ring.
pub const DESCRIPTOR_BYTES: usize = 256;
/// Descriptors of either ring. A power of two.
pub const RING_ENTRIES: usize = 64;
/// The first eight bytes of an arena: `KASMINA` and the layout's number, 1.
pub const ARENA_MAGIC: u64 = u64::from_le_bytes(*b"KASMINA\x01");
/// The smallest arena: header, rings and one page of heap.
pub const MIN_ARENA_BYTES: u64 = (HEAP_OFFSET + PAGE_BYTES) as u64;
/// The largest arena.
pub const MAX_ARENA_BYTES: u64 = 1 << 40;

pub(super) const PAGE_BYTES: usize = 4096;
const SUBMISSIONS_OFFSET: usize = PAGE_BYTES;
const COMPLETIONS_OFFSET: usize = SUBMISSIONS_OFFSET + RING_ENTRIES * DESCRIPTOR_BYTES;
const HEAP_OFFSET: usize = COMPLETIONS_OFFSET + RING_ENTRIES * DESCRIPTOR_BYTES;

/// One field of a struct in shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Field {
    /// The field's name.
    pub name: &'static str,
    /// Bytes from the start of its struct.
    pub offset: usize,
    /// Bytes it takes.
    pub size: usize,
    /// Its type, as Rust writes it.
    #[serde(rename = "type")]
    pub kind: &'static str,
}

macro_rules! shared {
    ($($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $kind:ty,)* })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq)]
        #[repr(C)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: $kind,)*
        }

        impl $name {
            /// The fields in order.
            pub const FIELDS: &'static [Field] = &[$(Field {
                name: stringify!($field),
                offset: offset_of!($name, $field),
                size: size_of::<$kind>(),
                kind: stringify!($kind),
            }),*];
        }
    )*};
}

shared! {
    /// The first page of an arena. The daemon writes the places once; counters and flags stand on cache
    /// lines of their own.
    ArenaHeader {
        /// [`ARENA_MAGIC`].
        magic: u64,
        /// Bytes of the whole arena.
        arena_bytes: u64,
        /// Where the submission ring starts.
        submissions_offset: u64,
        /// Where the completion ring starts.
        completions_offset: u64,
        /// Descriptors of each ring.
        ring_entries: u64,
        /// Bytes of each descriptor.
        descriptor_bytes: u64,
        /// Where the heap starts.
        heap_offset: u64,
        /// Bytes of the heap.
        heap_bytes: u64,
        /// Submissions published since the start. Written by the client.
        submission_tail: u64,
        /// To the end of the cache line.
        pad_submission_tail: [u64; 7],
        /// Submissions consumed since the start. Written by the daemon.
        submission_head: u64,
        /// To the end of the cache line.
        pad_submission_head: [u64; 7],
        /// Completions published since the start. Written by the daemon.
        completion_tail: u64,
        /// To the end of the cache line.
        pad_completion_tail: [u64; 7],
        /// Completions consumed since the start. Written by the client.
        completion_head: u64,
        /// To the end of the cache line.
        pad_completion_head: [u64; 7],
        /// 1 while the daemon sleeps or is about to: ring its doorbell after publishing.
        daemon_sleeping: u64,
        /// To the end of the cache line.
        pad_daemon_sleeping: [u64; 7],
        /// 1 while the client sleeps or is about to: the daemon rings its doorbell after publishing.
        client_sleeping: u64,
        /// To the end of the cache line.
        pad_client_sleeping: [u64; 7],
        /// Where tensors lie on a GPU: word n mod 64 becomes n + 1 when what submission n reads is there. Written by
        /// the client's streams.
        ready: [u64; 64],
        /// The same: word n mod 64 becomes n + 1 when submission n is done, for the client's streams to wait for.
        done: [u64; 64],
        /// The same: word n mod 64 is 1 − A, as f32 in its low half, once the forward n of a convex layer is done.
        rest: [u64; 64],
    }

    /// What a client asks of its lane: 256 bytes in the submission ring. Fields that a verb does not use
    /// are 0, and so is the rest.
    Submission {
        /// 1 forward, 2 backward, 3 release a ticket.
        verb: u32,
        /// The sum of the `FLAG_` bits.
        flags: u32,
        /// Any number; the completion carries it back.
        sequence: u64,
        /// The layer, as `open_layer` named it.
        layer: u32,
        /// Code of the element type of the input, the output and their gradients.
        dtype: u32,
        /// Backward and release: which ticket.
        ticket: u64,
        /// Forward: decides every dropout mask of the pass.
        rng_seed: u64,
        /// Forward: where x lies, from the start of the arena. It belongs to the ticket until that is spent.
        input_offset: u64,
        /// Bytes of x.
        input_bytes: u64,
        /// Forward: where S (convex, residual), P (multiply) or, in a layer with a host, y is to be written.
        output_offset: u64,
        /// Bytes of S, P or y.
        output_bytes: u64,
        /// Backward: where the gradient of S, P or y lies.
        grad_output_offset: u64,
        /// Bytes of it.
        grad_output_bytes: u64,
        /// Backward: where the gradient of x is to be written.
        grad_input_offset: u64,
        /// Bytes of it.
        grad_input_bytes: u64,
        /// Backward: where the parameters' gradients are to be written: the blocks of the seeds that ran,
        /// in seed order, each of the `gradient_bytes` that its graft announced.
        grad_parameters_offset: u64,
        /// Bytes of all those blocks.
        grad_parameters_bytes: u64,
        /// Backward: where the alphas' gradients are to be written, one f32 for each seed of the layer.
        grad_alphas_offset: u64,
        /// Bytes of them.
        grad_alphas_bytes: u64,
        /// Forward: how many dimensions x has.
        input_rank: u32,
        /// Forward: how many dimensions S, P or y has.
        output_rank: u32,
        /// Sizes of x, the batch first.
        input_dims: [u32; 8],
        /// Sizes of S, P or y, the batch first.
        output_dims: [u32; 8],
        /// Forward: where alphas for this pass lie, one f32 for each seed of the layer, NaN for the daemon's
        /// own; 0 where none are given. Backward: where it says at which byte of the parameters' gradients those of each
        /// slot begin, a u64 for each, all bits set for none; 0 where they follow each other.
        alphas_offset: u64,
        /// Bytes of them, or 0.
        alphas_bytes: u64,
        /// Backward: where the gradient of y lies for seeds in training, where it is another than that of the
        /// output; 0 where none is given.
        straight_offset: u64,
        /// Bytes of it, or 0.
        straight_bytes: u64,
        /// 0.
        reserved: [u64; 2],
    }

    /// What became of a submission: 256 bytes in the completion ring. Every submission has exactly one, in
    /// the order of submission.
    Completion {
        /// The submission's.
        sequence: u64,
        /// 0, or the number of an error code.
        status: u32,
        /// Forward: A, the total blend weight of the seeds that went into the blend.
        blend_weight: f32,
        /// Forward: the ticket that was taken, or 0.
        ticket: u64,
        /// Bit s is set if seed s ran: forward, in this pass; backward, in its ticket's.
        live_mask: u64,
        /// Bit s is set if seed s failed in this pass and was left out.
        failed_mask: u64,
        /// For each seed the kind of its failure, or 0.
        seed_status: [u8; 64],
        /// Forward: bytes that the ticket holds in the daemon.
        saved_bytes: u64,
        /// How long the daemon worked on it, in nanoseconds.
        duration_ns: u64,
        /// Forward: rises whenever a seed of the layer gets or loses a kernel.
        generation: u64,
        /// Bytes of the message.
        message_bytes: u32,
        /// Forward: T, the sum of the alphas of the seeds that went into the blend.
        alpha_total: f32,
        /// What went wrong, in UTF-8, cut to fit.
        message: [u8; 64],
        /// 0.
        reserved: [u64; 7],
    }
}

const _: () = {
    assert!(size_of::<Submission>() == DESCRIPTOR_BYTES);
    assert!(size_of::<Completion>() == DESCRIPTOR_BYTES);
    assert!(size_of::<ArenaHeader>() <= PAGE_BYTES && RING_ENTRIES == 64);
    assert!(HEAP_OFFSET.is_multiple_of(PAGE_BYTES) && RING_ENTRIES.is_power_of_two());
};

/// Where things lie in one arena, as the handshake states it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArenaLayout {
    /// Bytes of the whole arena.
    pub arena_bytes: u64,
    /// Where the submission ring starts.
    pub submissions_offset: u64,
    /// Where the completion ring starts.
    pub completions_offset: u64,
    /// Descriptors of each ring.
    pub ring_entries: u64,
    /// Bytes of each descriptor.
    pub descriptor_bytes: u64,
    /// Where the heap starts.
    pub heap_offset: u64,
    /// Bytes of the heap.
    pub heap_bytes: u64,
}

impl ArenaLayout {
    /// The layout of an arena of `arena_bytes`, rounded down to whole pages.
    ///
    /// # Errors
    /// [`WireError::ArenaSize`] below [`MIN_ARENA_BYTES`] and above [`MAX_ARENA_BYTES`].
    pub fn new(arena_bytes: u64) -> Result<Self, WireError> {
        if !(MIN_ARENA_BYTES..=MAX_ARENA_BYTES).contains(&arena_bytes) {
            let (min_bytes, max_bytes) = (MIN_ARENA_BYTES, MAX_ARENA_BYTES);
            return Err(WireError::ArenaSize { arena_bytes, min_bytes, max_bytes });
        }
        let arena_bytes = arena_bytes - arena_bytes % PAGE_BYTES as u64;
        Ok(Self {
            arena_bytes,
            submissions_offset: SUBMISSIONS_OFFSET as u64,
            completions_offset: COMPLETIONS_OFFSET as u64,
            ring_entries: RING_ENTRIES as u64,
            descriptor_bytes: DESCRIPTOR_BYTES as u64,
            heap_offset: HEAP_OFFSET as u64,
            heap_bytes: arena_bytes - HEAP_OFFSET as u64,
        })
    }
}

/// Every struct in shared memory with every field's place, and the numbers that stand for words.
///
/// The Python client carries this as `layout.json`; a test compares the two.
pub fn layout_json() -> Value {
    let dtypes: Vec<Value> = DType::ALL
        .iter()
        .map(|d| json!({"name": d.name(), "code": d.code(), "size": d.size_bytes()}))
        .collect();
    let failures: Vec<Value> =
        FailureKind::ALL.iter().map(|kind| json!({"number": *kind as u8, "code": kind.code()})).collect();
    let statuses: Vec<Value> =
        Status::ALL.iter().map(|status| json!({"number": *status as u32, "code": status.code()})).collect();
    json!({
        "protocol": super::PROTOCOL,
        "arena_magic": ARENA_MAGIC,
        "ring_entries": RING_ENTRIES,
        "descriptor_bytes": DESCRIPTOR_BYTES,
        "page_bytes": PAGE_BYTES,
        "alignment_bytes": ALIGNMENT_BYTES,
        "submissions_offset": SUBMISSIONS_OFFSET,
        "completions_offset": COMPLETIONS_OFFSET,
        "heap_offset": HEAP_OFFSET,
        "max_seeds": MAX_SEEDS,
        "max_rank": MAX_RANK,
        "frame_header_bytes": super::FRAME_HEADER_BYTES,
        "max_frame_bytes": super::MAX_FRAME_BYTES,
        "frame_kinds": {"request": 1, "reply": 2, "event": 3},
        "verbs": {"forward": super::VERB_FORWARD, "backward": super::VERB_BACKWARD,
                  "release": super::VERB_RELEASE},
        "flags": {"train": super::FLAG_TRAIN, "take_ticket": super::FLAG_TAKE_TICKET,
                  "want_grad_input": super::FLAG_WANT_GRAD_INPUT,
                  "want_grad_parameters": super::FLAG_WANT_GRAD_PARAMETERS,
                  "want_grad_alphas": super::FLAG_WANT_GRAD_ALPHAS},
        "dtypes": dtypes,
        "failures": failures,
        "statuses": statuses,
        "header": ArenaHeader::FIELDS,
        "submission": Submission::FIELDS,
        "completion": Completion::FIELDS,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structs_have_no_padding_and_counters_their_own_cache_lines() {
        for fields in [ArenaHeader::FIELDS, Submission::FIELDS, Completion::FIELDS] {
            let mut end = 0;
            for field in fields {
                assert_eq!(field.offset, end, "{}", field.name);
                end += field.size;
            }
        }
        let shared: Vec<usize> =
            ArenaHeader::FIELDS.iter().filter(|f| f.offset >= 64 && f.size == 8).map(|f| f.offset).collect();
        assert_eq!(shared, [64, 128, 192, 256, 320, 384]);
    }

    /// With KASMINA_WRITE_LAYOUT set the file is written anew instead.
    #[test]
    fn the_python_client_has_this_layout() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/python/kasmina/layout.json");
        let text = serde_json::to_string_pretty(&layout_json()).unwrap() + "\n";
        if std::env::var_os("KASMINA_WRITE_LAYOUT").is_some() {
            std::fs::write(path, &text).unwrap();
        }
        let theirs = std::fs::read_to_string(path).unwrap();
        assert!(theirs == text, "run KASMINA_WRITE_LAYOUT=1 cargo test --lib wire::layout");
    }

    #[test]
    fn an_arena_is_bounded_and_whole_pages() {
        let layout = ArenaLayout::new(MIN_ARENA_BYTES + 4097).unwrap();
        assert_eq!(layout.arena_bytes, MIN_ARENA_BYTES + 4096);
        assert_eq!(layout.heap_offset + layout.heap_bytes, layout.arena_bytes);
        assert!(ArenaLayout::new(MIN_ARENA_BYTES - 1).is_err());
        assert!(ArenaLayout::new(MAX_ARENA_BYTES + 1).is_err());
    }
}
