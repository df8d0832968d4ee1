//! The control connection: one request after the other, each with one reply.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Duration,
};

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
    tokio::select! {
        // The session's end of this channel is dropped with it, even while a peer does not read its reply.
        _ = closed.changed() => {}
        () = converse(&mut frames, &session) => {}
    }
    // A session that has ended already needs no telling.
    let _ = session.send(StopActor).await;
}

/// How long a peer may take to greet. Until then it holds a session's place for nothing.
const GREETING: Duration = Duration::from_secs(10);

async fn converse(frames: &mut Frames, session: &Addr<Session>) {
    let mut greeted = false;
    loop {
        let payload = if greeted {
            frames.next().await
        } else {
            // A peer that says nothing is as good as gone.
            tokio::time::timeout(GREETING, frames.next()).await.unwrap_or(Err(WireError::Closed))
        };
        greeted = true;
        let served = match payload {
            Ok(Some(payload)) => serve(frames, session, &payload).await,
            Ok(None) | Err(WireError::Closed) => return,
            Err(error) => {
                // Where one frame ends and the next begins is lost: say why, then close.
                let _ = refuse(frames, &error).await;
                return;
            }
        };
        if served.is_err() {
            return;
        }
    }
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
