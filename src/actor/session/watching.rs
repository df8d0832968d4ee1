//! A connection that watches: one request, and from then on events.

use std::time::Duration;

use crate::{
    actor::{Events, Scope, base::Frames},
    fault::Fault,
    wire::{Empty, ErrorReply, FrameKind, Reply, WireError, encode},
};

/// How long a watcher may leave an event unread in its socket before its place is given to another.
const PATIENCE: Duration = Duration::from_secs(30);

/// Tells a connection what happens until it is closed. It says nothing more itself; whoever does is cut off.
pub async fn serve_watcher(frames: &mut Frames, events: &Events, scope: Scope) {
    let mut watcher = match events.watch(scope) {
        Ok(watcher) => watcher,
        Err(error) => {
            return drop(answer(frames, &Reply::<Empty>::Error(ErrorReply::from_fault(&error))).await);
        }
    };
    if answer(frames, &Reply::Ok(Empty {})).await.is_err() {
        return;
    }
    loop {
        let event = tokio::select! {
            event = watcher.next() => event,
            said = frames.next() => {
                if matches!(said, Ok(Some(_))) {
                    let reason = "a connection that watches asks nothing else: open another".to_owned();
                    let error = WireError::Frame { reason };
                    // One that does not listen is gone already.
                    let _ = answer(frames, &refusal(&error)).await;
                }
                return;
            }
        };
        let told = match encode(FrameKind::Event, 0, &*event) {
            Ok(frame) => {
                let sent = tokio::time::timeout(PATIENCE, frames.send(&frame, &[])).await;
                sent.unwrap_or(Err(WireError::Closed))
            }
            Err(error) => Err(error),
        };
        if told.is_err() {
            return;
        }
    }
}

fn refusal(error: &dyn Fault) -> Reply<Empty> {
    Reply::Error(ErrorReply::from_fault(error))
}

async fn answer(frames: &mut Frames, reply: &Reply<Empty>) -> Result<(), WireError> {
    frames.send(&encode(FrameKind::Reply, 0, reply)?, &[]).await
}
