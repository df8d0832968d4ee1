//! The control connection: one request after the other, each with one reply.

use std::{os::fd::BorrowedFd, time::Duration};

use actix::Addr;
use tokio::net::UnixStream;

use super::{
    Session,
    requests::{Answer, Serve},
    watching::serve_watcher,
};
use crate::{
    actor::{
        Events, Scope,
        base::{Frames, StopActor},
    },
    failpoint::{self, Failpoint},
    wire::{ErrorReply, FrameKind, Peer, Reply, Request, Watch, WireError, decode, encode},
};

/// Serves a trainer's connection until either side ends it, then stops the session. A connection that only watches is
/// no session, and goes on after that.
pub async fn serve_session(
    stream: UnixStream,
    session: Addr<Session>,
    mut closed: Closed,
    peer: Peer,
    events: Events,
) {
    failpoint::reached(Failpoint::Connected);
    let mut frames = Frames::new(stream);
    let watches = tokio::select! {
        // The session's end of this channel is dropped with it, even while a peer does not read its reply.
        _ = closed.changed() => None,
        watches = converse(&mut frames, &session) => watches,
    };
    // A session that has ended already needs no telling.
    let _ = session.send(StopActor).await;
    if let Some(Watch { session }) = watches {
        serve_watcher(&mut frames, &events, Scope { uid: Some(peer.uid), session }).await;
    }
}

/// Tells that a session is over.
type Closed = tokio::sync::watch::Receiver<()>;

/// How long a peer may take to greet. Until then it holds a session's place for nothing.
const GREETING: Duration = Duration::from_secs(10);

/// Answers request after request; ends with the connection, or with what a watcher wants to see.
async fn converse(frames: &mut Frames, session: &Addr<Session>) -> Option<Watch> {
    let mut greeted = false;
    loop {
        let payload = if greeted {
            frames.next().await
        } else {
            // A peer that says nothing is as good as gone.
            tokio::time::timeout(GREETING, frames.next()).await.unwrap_or(Err(WireError::Closed))
        };
        let is_first = !std::mem::replace(&mut greeted, true);
        let served = match payload {
            Ok(Some(payload)) => match decode(&payload) {
                Ok(Request::Watch(watch)) if is_first => return Some(watch),
                Ok(request) => {
                    failpoint::reached(Failpoint::FrameReceived);
                    serve(frames, session, request).await
                }
                Err(error) => refuse(frames, &error).await,
            },
            Ok(None) | Err(WireError::Closed) => return None,
            Err(error) => {
                // Where one frame ends and the next begins is lost: say why, then close.
                let _ = refuse(frames, &error).await;
                return None;
            }
        };
        if served.is_err() {
            return None;
        }
    }
}

async fn serve(frames: &mut Frames, session: &Addr<Session>, request: Request) -> Result<(), WireError> {
    let answer = match session.send(Serve(request)).await {
        Ok(answer) => answer,
        // The session has ended meanwhile.
        Err(_) => return Err(WireError::Closed),
    };
    let Answer { frame, memory } = answer;
    let all: Vec<BorrowedFd<'_>> = memory.iter().map(|memory| memory.file()).collect();
    failpoint::reached(Failpoint::ReplyReady);
    if !all.is_empty() {
        failpoint::reached(Failpoint::DescriptorsReady);
    }
    frames.send(&frame, &all).await?;
    failpoint::reached(Failpoint::ReplySent);
    if !all.is_empty() {
        failpoint::reached(Failpoint::DescriptorsSent);
    }
    Ok(())
}

async fn refuse(frames: &mut Frames, error: &WireError) -> Result<(), WireError> {
    let reply: Reply<()> = Reply::Error(ErrorReply::from_fault(error));
    frames.send(&encode(FrameKind::Reply, 0, &reply)?, &[]).await
}
