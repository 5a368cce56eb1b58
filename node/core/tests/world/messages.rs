//! Messages: each delivered once, whatever the network and the machines do.

use persona_agent::{Announcement, Commitment, RootSecret};
use persona_core::{Call, CallError, Gossip, Input};
use persona_fragments::{Digest, OwnerKey};

use crate::{CALM, STORM, World};

/// Two agents on two hosts.
fn pair(world: &mut World) -> (OwnerKey, OwnerKey) {
    (world.create(0, "ada"), world.create(1, "bob"))
}

fn all_acknowledged(world: &mut World, host: usize, agent: OwnerKey) -> bool {
    world.outbox(host, agent).iter().all(|state| *state == "acknowledged")
}

#[test]
fn a_message_is_delivered_and_acknowledged() {
    let mut world = World::of(6, 101);
    let (ada, bob) = pair(&mut world);
    world.send(0, ada, bob, "hello").expect("it is sent");
    world.until("an acknowledgement", |world| all_acknowledged(world, 0, ada));
    assert_eq!(world.inbox(1, bob), ["hello"]);
}

#[test]
fn a_storm_delivers_every_message_once() {
    let mut world = World::of(6, 102);
    let (ada, bob) = pair(&mut world);
    world.net = STORM;
    for number in 0..20 {
        world.send(0, ada, bob, &format!("to bob {number}")).expect("it is sent");
        world.send(1, bob, ada, &format!("to ada {number}")).expect("it is sent");
    }
    world.run_s(60);
    world.net = CALM;
    world.until("all acknowledgements", |world| all_acknowledged(world, 0, ada) && all_acknowledged(world, 1, bob));
    for (host, agent, name) in [(1, bob, "bob"), (0, ada, "ada")] {
        let mut texts = world.inbox(host, agent);
        let mut expected: Vec<String> = (0..20).map(|number| format!("to {name} {number}")).collect();
        texts.sort();
        expected.sort();
        assert_eq!(texts, expected);
    }
}

#[test]
fn crashes_of_either_side_deliver_every_message_once() {
    let mut world = World::of(6, 103);
    let (ada, bob) = pair(&mut world);
    let mut accepted = Vec::new();
    for number in 0..24u64 {
        let text = format!("message {number}");
        let id = world.call(0, Call::Send { from: ada, to: bob, text: text.clone() });
        // Sooner or later in its life: before the row is durable, on its way, before its acknowledgement, after it.
        world.run_us(number * 700);
        let victim = (number % 2) as usize;
        world.crash(victim);
        world.run_ms(50);
        world.restart(victim);
        world.run_ms(200);
        if matches!(world.replies.get(&id), Some(Ok(_))) {
            accepted.push(text);
        }
    }
    world.run_s(60);
    let mut texts = world.inbox(1, bob);
    texts.sort();
    let count = texts.len();
    texts.dedup();
    assert_eq!(texts.len(), count, "no message twice");
    assert!(accepted.len() > 6, "{} were accepted", accepted.len());
    assert!(accepted.iter().all(|text| texts.contains(text)), "what was answered for arrives");
    assert!(all_acknowledged(&mut world, 0, ada), "and is acknowledged, whoever forgot what: {:?}", world.outbox(0, ada));
}

#[test]
fn nothing_is_acknowledged_before_it_is_durable_not_even_when_it_comes_again() {
    let mut world = World::of(6, 104);
    let (ada, bob) = pair(&mut world);
    world.send(0, ada, bob, "first contact").expect("it is sent");
    world.run_s(10);
    world.sync_us = 2_500_000; // the message comes again before the disk has it: the watch compares acknowledgements with the disk
    let id = world.call(0, Call::Send { from: ada, to: bob, text: "slow".into() });
    world.answer_of(id, "a send").expect("it is sent");
    world.run_s(8);
    assert_eq!(world.inbox(1, bob), ["first contact", "slow"]);
}

#[test]
fn an_acknowledgement_that_was_lost_is_sent_again_and_a_replay_changes_nothing() {
    let mut world = World::of(6, 105);
    let (ada, bob) = pair(&mut world);
    world.send(0, ada, bob, "one").expect("it is sent");
    world.until("it arrives", |world| world.inbox(1, bob).len() == 1);
    world.until("its acknowledgement", |world| all_acknowledged(world, 0, ada));
    // The next one's acknowledgement finds nobody.
    world.send(0, ada, bob, "two").expect("it is sent");
    world.until("the second arrives", |world| world.inbox(1, bob).len() == 2);
    world.net.deaf = true;
    world.run_s(3);
    let before = relationship(&mut world, 1, bob);
    world.net.deaf = false;
    world.until("the second acknowledgement", |world| all_acknowledged(world, 0, ada));
    world.run_s(5);
    assert_eq!(world.inbox(1, bob), ["one", "two"]);
    assert_eq!(relationship(&mut world, 1, bob), before, "a replay changes nothing");
    assert_eq!(relationship(&mut world, 0, ada), before, "both remember two messages");
}

#[test]
fn a_receiver_that_crashed_still_acknowledges_what_it_delivered() {
    let mut world = World::of(6, 106);
    let (ada, bob) = pair(&mut world);
    world.send(0, ada, bob, "one").expect("it is sent");
    world.until("it arrives", |world| world.inbox(1, bob).len() == 1);
    world.net.deaf = true;
    world.run_ms(20);
    world.until("the row is durable", |world| world.hosts[1].unsynced.is_empty());
    world.crash(1);
    world.net.deaf = false;
    world.restart(1);
    world.until("the acknowledgement", |world| all_acknowledged(world, 0, ada));
    assert_eq!(world.inbox(1, bob), ["one"]);
}

fn relationship(world: &mut World, host: usize, agent: OwnerKey) -> u64 {
    match world.ask(host, Call::Relationships { agent }) {
        Ok(persona_core::Answer::Relationships(report)) => report.relationships[0].interactions,
        other => panic!("no relationships: {other:?}"),
    }
}

#[test]
fn the_outbox_has_room_again_when_messages_are_acknowledged() {
    let mut world = World::of(1, 107); // both on one machine: the same rules, and no network to wait for
    let ada = world.create(0, "ada");
    let bob = world.create(0, "bob");
    for number in 0..1_010 {
        let sent = world.send(0, ada, bob, &number.to_string());
        assert!(sent.is_ok(), "message {number}: {sent:?}");
    }
    world.until("all acknowledgements", |world| all_acknowledged(world, 0, ada));
    assert!(world.outbox(0, ada).len() <= 1_000, "what is over is forgotten some time");
    assert_eq!(world.inbox(0, bob).len(), 1_000, "the inbox keeps the last thousand");
}

#[test]
fn a_full_outbox_refuses_and_drops_nothing() {
    let mut world = World::of(3, 108);
    let (ada, bob) = pair(&mut world);
    world.send(0, ada, bob, "first").expect("it is sent");
    world.until("it arrives", |world| world.inbox(1, bob).len() == 1);
    world.until("its acknowledgement", |world| all_acknowledged(world, 0, ada));
    world.crash(1);
    let refused = (0..1_001).map(|number| world.send(0, ada, bob, &number.to_string())).position(|sent| sent.is_err());
    assert_eq!(refused, Some(1_000));
    assert!(matches!(world.send(0, ada, bob, "one more"), Err(CallError::Busy(_))));
}

#[test]
fn calls_that_wait_for_a_card_are_bounded_and_all_answered() {
    let mut world = World::of(4, 109);
    let ada = world.create(0, "ada");
    let nobody = RootSecret::from_bytes([9; 32]).agent_id();
    let ids: Vec<u64> = (0..300).map(|_| world.call(0, Call::Send { from: ada, to: nobody, text: "anyone?".into() })).collect();
    let busy = ids.iter().filter(|id| matches!(world.replies.get(*id), Some(Err(CallError::Busy(_))))).count();
    assert_eq!(busy, 300 - 256);
    world.run_s(15);
    assert!(ids.iter().all(|id| matches!(world.replies.get(id), Some(Err(_)))), "nobody is there, and everyone is told");
}

#[test]
fn a_second_personality_is_refused_and_alarmed_everywhere() {
    let mut world = World::of(5, 110);
    let ada = world.create(0, "ada");
    world.run_s(3);
    let root = RootSecret::from_bytes(world.root_of(0, "ada"));
    let now_ms = world.now().wall_ms;
    let other = Commitment::first(ada, Digest([5; 32]), now_ms, &root.signer());
    let data = Announcement::Commitment(other).to_bytes();
    world.feed(3, Input::Gossip { message: u64::MAX, topic: Gossip::Announce, data: data.clone() });
    assert_eq!(world.alarms(3, "second-commitment"), 1);
    // A flood of it is counted, not shouted.
    for number in 1..50 {
        world.feed(3, Input::Gossip { message: u64::MAX - number, topic: Gossip::Announce, data: data.clone() });
    }
    assert_eq!(world.alarms(3, "second-commitment"), 1);
    assert_eq!(world.status(3).counters["commitments_refused"], 50);
    // What is known survives a restart.
    world.crash(3);
    world.restart(3);
    world.feed(3, Input::Gossip { message: u64::MAX - 99, topic: Gossip::Announce, data });
    assert_eq!(world.alarms(3, "second-commitment"), 2);
}
