//! Where connections come from.

use std::{
    fs, io,
    net::{SocketAddr, TcpListener as StdTcp},
    os::{
        fd::OwnedFd,
        unix::{
            fs::{FileTypeExt, PermissionsExt},
            net::UnixListener as StdUnix,
        },
    },
    path::{Path, PathBuf},
};

use nix::sys::socket::{
    AddressFamily, SockType, SockaddrLike, SockaddrStorage, getsockname, getsockopt, sockopt,
};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use crate::http::{
    access::Peer,
    problem::{Kind, MEDIA_TYPE, Problem},
};

/// A socket that is bound: clients can connect from then on, and are served once `serve` runs.
#[derive(Debug)]
pub enum Listener {
    /// Anybody who can reach the address; needs the token.
    Tcp {
        /// The socket.
        socket: StdTcp,
        /// The address that is really bound.
        address: SocketAddr,
    },
    /// Processes of this machine; their user is what counts.
    Unix {
        /// The socket.
        socket: StdUnix,
        /// Its path.
        path: PathBuf,
    },
}

impl Listener {
    /// Binds a TCP address; port 0 is any free one.
    ///
    /// # Errors
    /// The system's.
    pub fn bind_tcp(address: SocketAddr) -> io::Result<Self> {
        let socket = StdTcp::bind(address)?;
        socket.set_nonblocking(true)?;
        let address = socket.local_addr()?;
        Ok(Self::Tcp { socket, address })
    }

    /// Binds a unix socket in place of one that an earlier daemon left. Call it under the state directory's lock.
    ///
    /// # Errors
    /// The system's; also where something else than a socket is in the way.
    pub fn bind_unix(path: &Path) -> io::Result<Self> {
        match fs::symlink_metadata(path) {
            // Only a socket that nobody answers at is an earlier daemon's.
            Ok(found) if found.file_type().is_socket() => match std::os::unix::net::UnixStream::connect(path)
            {
                Ok(_) => return Err(io::ErrorKind::AddrInUse.into()),
                Err(_) => fs::remove_file(path)?,
            },
            Ok(_) => {
                let message = format!("{} is there and is no socket; move it away", path.display());
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, message));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let socket = StdUnix::bind(path)?;
        // Peer credentials decide; the mode only spares others a refusal.
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        socket.set_nonblocking(true)?;
        Ok(Self::Unix { socket, path: path.to_owned() })
    }

    /// Takes a socket that somebody else has bound, as a service manager does.
    ///
    /// # Errors
    /// A sentence where it is none to serve the API on, or the system's.
    pub fn from_socket(socket: OwnedFd) -> io::Result<Self> {
        let unfit = |why: &str| io::Error::new(io::ErrorKind::InvalidInput, why);
        let no_socket = |errno| unfit(&format!("it is no socket ({errno})"));
        if getsockopt(&socket, sockopt::SockType).map_err(no_socket)? != SockType::Stream {
            return Err(unfit("it is no stream socket; use ListenStream="));
        }
        if !getsockopt(&socket, sockopt::AcceptConn)? {
            return Err(unfit("it does not listen; use ListenStream= with Accept=no"));
        }
        let family = getsockname::<SockaddrStorage>(std::os::fd::AsRawFd::as_raw_fd(&socket))?.family();
        match family {
            Some(AddressFamily::Unix) => {
                let socket = StdUnix::from(socket);
                socket.set_nonblocking(true)?;
                let address = socket.local_addr()?;
                let path = address.as_pathname().filter(|path| path.is_absolute());
                let path =
                    path.ok_or_else(|| unfit("clients could not find it; use an absolute path"))?.to_owned();
                Ok(Self::Unix { socket, path })
            }
            Some(AddressFamily::Inet | AddressFamily::Inet6) => {
                let socket = StdTcp::from(socket);
                socket.set_nonblocking(true)?;
                let address = socket.local_addr()?;
                match address.ip().is_loopback() {
                    true => Ok(Self::Tcp { socket, address }),
                    false => Err(unfit(&format!(
                        "{address} is not on loopback: whoever can submit a job can execute code, and there is no TLS \
                         yet; use 127.0.0.1:PORT or [::1]:PORT"
                    ))),
                }
            }
            Some(_) | None => Err(unfit("it is neither a unix nor a TCP socket")),
        }
    }

    /// The address, as `--listen` takes it.
    pub fn address(&self) -> String {
        match self {
            Self::Tcp { address, .. } => address.to_string(),
            Self::Unix { path, .. } => format!("unix:{}", path.display()),
        }
    }

    pub(super) fn open(self) -> io::Result<Open> {
        match self {
            Self::Tcp { socket, .. } => TcpListener::from_std(socket).map(Open::Tcp),
            Self::Unix { socket, .. } => UnixListener::from_std(socket).map(Open::Unix),
        }
    }
}

/// A listener on the event loop.
pub(super) enum Open {
    Tcp(TcpListener),
    Unix(UnixListener),
}

pub(super) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Open {
    pub(super) async fn accept(&self) -> io::Result<(Stream, Peer)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, remote) = listener.accept().await?;
                let local = stream.local_addr()?;
                // Answers are short, and each is wanted at once.
                stream.set_nodelay(true)?;
                Ok((Stream::Tcp(stream), Peer::Tcp { remote, local }))
            }
            Self::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                let uid = stream.peer_cred()?.uid();
                Ok((Stream::Unix(stream), Peer::Unix { uid }))
            }
        }
    }
}

impl Stream {
    /// Says why, as far as the socket takes it at once, and closes.
    pub(super) fn turn_away(self) {
        let problem = Problem::new(
            Kind::TooManyConnections,
            "as many connections are open as may be, and each is being served; come again in a moment",
        );
        let body = problem.to_json();
        let head = format!(
            "HTTP/1.1 503 Service Unavailable\r\ncontent-type: {MEDIA_TYPE}\r\nretry-after: 1\r\nconnection: close\r\n\
             content-length: {}\r\n\r\n",
            body.len()
        );
        let answer = [head.into_bytes(), body].concat();
        let written = match self {
            Self::Tcp(stream) => stream.try_write(&answer),
            Self::Unix(stream) => stream.try_write(&answer),
        };
        if let Err(error) = written {
            tracing::debug!(%error, "a connection was closed without a word");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_that_was_left_is_replaced_and_nothing_else_is() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("api.sock");
        drop(Listener::bind_unix(&path).expect("bound"));
        let again = Listener::bind_unix(&path).expect("bound again");
        assert_eq!(again.address(), format!("unix:{}", path.display()));
        let file = dir.path().join("file");
        fs::write(&file, "data").expect("written");
        assert!(Listener::bind_unix(&file).is_err());
        assert_eq!(fs::read(&file).expect("still there"), b"data");
    }

    #[test]
    fn a_socket_that_somebody_else_bound_is_served_if_it_is_fit() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("api.sock");
        let unix = StdUnix::bind(&path).expect("bound");
        let listener = Listener::from_socket(unix.into()).expect("fit");
        assert_eq!(listener.address(), format!("unix:{}", path.display()));
        let tcp = StdTcp::bind("[::1]:0").or_else(|_| StdTcp::bind("127.0.0.1:0")).expect("bound");
        let address = tcp.local_addr().expect("an address").to_string();
        assert_eq!(Listener::from_socket(tcp.into()).expect("fit").address(), address);
        let refused = |fd: OwnedFd| Listener::from_socket(fd).expect_err("unfit").to_string();
        assert!(refused(StdTcp::bind("0.0.0.0:0").expect("bound").into()).contains("not on loopback"));
        let datagram = std::os::unix::net::UnixDatagram::unbound().expect("made");
        assert!(refused(datagram.into()).contains("ListenStream="));
        let (connected, _other) = std::os::unix::net::UnixStream::pair().expect("made");
        assert!(refused(connected.into()).contains("does not listen"));
        assert!(refused(fs::File::open("/dev/null").expect("open").into()).contains("no socket"));
    }

    #[test]
    fn port_0_is_any_free_one() {
        let listener = Listener::bind_tcp("127.0.0.1:0".parse().expect("an address")).expect("bound");
        assert!(!listener.address().ends_with(":0"));
    }
}
