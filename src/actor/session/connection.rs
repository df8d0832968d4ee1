//! The control connection: one request after the other, each with one reply.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use actix::Addr;
use tokio::{net::UnixStream, sync::watch};

use super::{
    Session,
    requests::{Answer, Serve},
};
use crate::{
    actor::base::{Frames, StopActor},
    wire::{ErrorReply, FrameKind, Reply, Request, WireError, decode, encode},
};

/// Serves a trainer's connection until either side ends it, then stops the session.
pub async fn serve_session(stream: UnixStream, session: Addr<Session>, mut closed: watch::Receiver<()>) {
    let mut frames = Frames::new(stream);
    loop {
        let payload = tokio::select! {
            // The session's end of this channel is dropped with it.
            _ = closed.changed() => break,
            payload = frames.next() => payload,
        };
        let served = match payload {
            Ok(Some(payload)) => serve(&mut frames, &session, &payload).await,
            Ok(None) | Err(WireError::Closed) => break,
            Err(error) => {
                // Where one frame ends and the next begins is lost: say why, then close.
                let _ = refuse(&mut frames, &error).await;
                break;
            }
        };
        if served.is_err() {
            break;
        }
    }
    // A session that has ended already needs no telling.
    let _ = session.send(StopActor).await;
}

async fn serve(frames: &mut Frames, session: &Addr<Session>, payload: &[u8]) -> Result<(), WireError> {
    let request: Request = match decode(payload) {
        Ok(request) => request,
        Err(error) => return refuse(frames, &error).await,
    };
    let answer = match session.send(Serve(request)).await {
        Ok(answer) => answer,
        // The session has ended meanwhile.
        Err(_) => return Err(WireError::Closed),
    };
    let Answer { frame, descriptors, memory } = answer;
    let owned = descriptors.iter().map(OwnedFd::as_fd);
    let all: Vec<BorrowedFd<'_>> = memory.iter().map(|memory| memory.file()).chain(owned).collect();
    frames.send(&frame, &all).await
}

async fn refuse(frames: &mut Frames, error: &WireError) -> Result<(), WireError> {
    let reply: Reply<()> = Reply::Error(ErrorReply::from_fault(error));
    frames.send(&encode(FrameKind::Reply, 0, &reply)?, &[]).await
}
