//! Clients that are slow, many, or gone (case 42): nobody else notices.

use std::io::Write;

use crate::{
    client::{Client, Request, Socket},
    rig::Rig,
};

/// Sends a part of a request, and no more.
fn dribble(client: &Client, count: usize) -> Vec<Box<dyn Socket>> {
    let dribbling = (0..count).map(|number| {
        let mut socket = client.connect();
        let part: &[u8] = match number % 3 {
            0 => b"",
            1 => b"GET /livez HTTP/1.1\r\nhost: loc",
            _ => b"GET /livez HTTP/1.1\r\nhost: localhost\r\nx-slow: ",
        };
        // It may have been let go already.
        drop(socket.write(part));
        socket
    });
    dribbling.collect()
}

#[test]
fn case_42_a_thousand_dribbling_clients_take_nobodys_place() {
    let rig = Rig::start();
    let id = rig.running("hold");
    let _slow = [dribble(&rig.tcp(), 1000), dribble(&rig.unix(), 1000)];
    for client in [rig.tcp(), rig.unix()] {
        assert_eq!(client.send(&Request::new("GET", "/livez")).status, 200);
    }
    let cancel = Request::new("POST", &format!("/v1/runners/{id}/cancel")).token(&rig.token);
    assert_eq!(rig.tcp().send(&cancel).status, 202);
}

#[test]
fn case_42_those_who_dribble_bodies_take_nobodys_place() {
    let rig = Rig::start();
    let head = format!(
        "POST /v1/runners HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\n\
         content-length: 100\r\n\r\n{{",
        rig.token
    );
    let _slow: Vec<_> = (0..400)
        .map(|_| {
            let mut socket = rig.tcp().connect();
            drop(socket.write(head.as_bytes()));
            socket
        })
        .collect();
    assert_eq!(rig.tcp().send(&Request::new("GET", "/livez")).status, 200);
}

#[test]
fn case_42_dead_followers_take_nobodys_place() {
    let rig = Rig::start();
    let id = rig.running("hold");
    let piece = vec![b'x'; 60_000];
    for _ in 0..20 {
        rig.write_output(id, &[(1, &piece)]);
    }
    // Each has more to take than its socket holds, and takes nothing.
    let follow = Request::new("GET", &format!("/v1/runners/{id}/logs?follow"));
    let dead = |count: usize| {
        let follow = follow.bytes();
        let sockets = (0..count).map(|_| {
            let mut socket = rig.unix().connect();
            socket.write_all(&follow).expect("sent");
            socket
        });
        sockets.collect::<Vec<_>>()
    };
    let _dead = dead(100);
    let answer = rig.get(&format!("/v1/runners/{id}/logs"));
    assert_eq!(answer.body.len(), 20 * piece.len());
    // More than may hold an answer open, and more than there are places.
    let _many_dead = dead(400);
    assert_eq!(rig.get("/livez").status, 200);
    assert_eq!(rig.ask(Request::new("POST", &format!("/v1/runners/{id}/cancel"))).status, 202);
}

#[test]
fn a_connection_is_kept_for_the_next_request() {
    let rig = Rig::start();
    let mut socket = rig.unix().connect();
    let request = Request::new("GET", "/livez").header("connection", "keep-alive").bytes();
    for _ in 0..3 {
        socket.write_all(&request).expect("sent");
        let mut answer = Vec::new();
        while !answer.ends_with(b"ok\n") {
            let mut byte = [0];
            socket.read_exact(&mut byte).expect("an answer");
            answer.push(byte[0]);
        }
    }
}
