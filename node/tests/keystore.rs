//! The keystore, seen from outside: what opens it, what does not, and what its file gives away.
#![allow(clippy::disallowed_methods, reason = "tests of files")]

use std::path::Path;

use persona::keystore::{
    AgentSecrets, Cost, ImportSecrets, KEYSTORE_FILE, Keystore, KeystoreError, NAME_BYTES_MAX, Passphrase, SALT_BYTES, derive_key,
};
use persona_fragments::OwnerKey;
use sha2::{Digest as _, Sha256};

fn passphrase() -> Passphrase {
    Passphrase::new("correct horse battery staple".to_owned())
}

fn ada() -> AgentSecrets {
    let root = *b"ada's root secret, 32 bytes long";
    let behaviour_seed = *b"ada's behaviour seed, 32 bytes..";
    AgentSecrets { name: "ada".to_owned(), agent: OwnerKey([0xad; 32]), term: 1, root, behaviour_seed }
}

fn bob() -> AgentSecrets {
    let root = *b"bob's root secret, 32 bytes long";
    let behaviour_seed = *b"bob's behaviour seed, 32 bytes..";
    AgentSecrets { name: "bob".to_owned(), agent: OwnerKey([0xb0; 32]), term: 7, root, behaviour_seed }
}

/// An agent on its way here.
fn cleo() -> ImportSecrets {
    let root = *b"cleo's root secret, 32 bytes too";
    ImportSecrets { name: "cleo".to_owned(), agent: OwnerKey([0xc1; 32]), from_term: 4, root }
}

fn create(directory: &Path) -> Keystore {
    Keystore::create(directory, &passphrase(), Cost::for_tests_only()).unwrap()
}

fn open(directory: &Path) -> Result<Keystore, KeystoreError> {
    Keystore::open(directory, &passphrase())
}

fn file(directory: &Path) -> Vec<u8> {
    std::fs::read(directory.join(KEYSTORE_FILE)).unwrap()
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

/// Puts the right checksum at the end, as someone who wants to deceive would.
fn with_checksum(mut bytes: Vec<u8>) -> Vec<u8> {
    let summed = bytes.len() - 32;
    let sum = Sha256::new().chain_update("persona/keystore/sum/v1").chain_update(&bytes[..summed]).finalize();
    bytes[summed..].copy_from_slice(&sum);
    bytes
}

#[test]
fn what_was_put_is_there_after_opening_again() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("made/on/the/way");
    let mut keystore = create(&state);
    let (node_seed, node_key) = (keystore.node_seed(), keystore.node_key());
    assert_ne!(node_seed, node_key);
    keystore.put_agent(&ada()).unwrap();
    keystore.put_agent(&bob()).unwrap();
    keystore.put_agent(&AgentSecrets { term: 2, name: "ada".to_owned(), ..ada() }).unwrap();
    drop(keystore);

    let mut keystore = open(&state).unwrap();
    assert_eq!((keystore.node_seed(), keystore.node_key()), (node_seed, node_key));
    let listed: Vec<_> = keystore.agents().into_iter().map(|entry| (entry.name, entry.agent, entry.term)).collect();
    assert_eq!(listed, [("ada".to_owned(), ada().agent, 2), ("bob".to_owned(), bob().agent, 7)]);
    assert_eq!(keystore.agent("ada").unwrap(), AgentSecrets { term: 2, name: "ada".to_owned(), ..ada() });
    assert_eq!(keystore.agent("bob").unwrap(), bob());

    keystore.remove_agent("ada").unwrap();
    let keystore = open(&state).unwrap();
    assert!(matches!(keystore.agent("ada"), Err(KeystoreError::NoSuchAgent(name)) if name == "ada"));
    assert_eq!(keystore.agent("bob").unwrap(), bob());
}

#[test]
fn an_agent_that_comes_back_under_another_name_is_kept_once() {
    let directory = tempfile::tempdir().unwrap();
    let mut keystore = create(directory.path());
    keystore.put_agent(&ada()).unwrap();
    keystore.put_agent(&AgentSecrets { name: "ada3".into(), term: 3, ..ada() }).unwrap();
    drop(keystore);
    let agents = open(directory.path()).unwrap().agents();
    assert_eq!(agents.iter().map(|agent| (agent.name.as_str(), agent.term)).collect::<Vec<_>>(), [("ada3", 3)]);
}

#[test]
fn two_keystores_share_no_secret() {
    let [one, other] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let [one, other] = [create(one.path()), create(other.path())];
    assert_ne!(one.node_seed(), other.node_seed());
    assert_ne!(one.node_key(), other.node_key());
}

#[test]
fn a_keystore_is_created_once_and_opened_only_where_there_is_one() {
    let directory = tempfile::tempdir().unwrap();
    assert!(matches!(open(directory.path()), Err(KeystoreError::NotFound(_))));
    create(directory.path());
    let before = file(directory.path());
    let again = Keystore::create(directory.path(), &passphrase(), Cost::for_tests_only());
    assert!(matches!(again, Err(KeystoreError::AlreadyExists(_))), "{again:?}");
    assert_eq!(file(directory.path()), before);
}

#[test]
fn only_the_right_passphrase_opens_it() {
    let directory = tempfile::tempdir().unwrap();
    create(directory.path());
    for wrong in ["", "correct horse battery stapl", "correct horse battery staple ", "Correct horse battery staple"] {
        let opened = Keystore::open(directory.path(), &Passphrase::new(wrong.to_owned()));
        assert!(matches!(opened, Err(KeystoreError::WrongPassphrase)), "{wrong:?}: {opened:?}");
    }
    open(directory.path()).unwrap();
}

#[test]
fn a_changed_passphrase_replaces_the_old_one_and_keeps_the_secrets() {
    let directory = tempfile::tempdir().unwrap();
    let mut keystore = create(directory.path());
    keystore.put_agent(&ada()).unwrap();
    let node_seed = keystore.node_seed();
    let new = Passphrase::new("another".to_owned());
    keystore.change_passphrase(&new, Cost::for_tests_only()).unwrap();
    assert!(matches!(open(directory.path()), Err(KeystoreError::WrongPassphrase)));
    let keystore = Keystore::open(directory.path(), &new).unwrap();
    assert_eq!(keystore.node_seed(), node_seed);
    assert_eq!(keystore.agent("ada").unwrap(), ada());
}

#[test]
fn any_damaged_byte_is_noticed_and_not_taken_for_a_wrong_passphrase() {
    let directory = tempfile::tempdir().unwrap();
    let mut keystore = create(directory.path());
    keystore.put_born(&ada()).unwrap();
    keystore.put_import(&cleo()).unwrap();
    let whole = file(directory.path());
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at % 8);
        std::fs::write(directory.path().join(KEYSTORE_FILE), bytes).unwrap();
        match open(directory.path()) {
            Err(KeystoreError::Damaged { .. }) => {}
            Err(KeystoreError::Newer { found, .. }) if at == 8 => assert_eq!(found, 2 ^ 1),
            other => panic!("byte {at}: {other:?}"),
        }
    }
    for len in 0..whole.len() {
        std::fs::write(directory.path().join(KEYSTORE_FILE), &whole[..len]).unwrap();
        assert!(matches!(open(directory.path()), Err(KeystoreError::Damaged { .. })), "cut to {len} bytes");
    }
}

#[test]
fn a_forged_byte_never_opens_even_with_a_matching_checksum() {
    let directory = tempfile::tempdir().unwrap();
    create(directory.path()).put_agent(&ada()).unwrap();
    let whole = file(directory.path());
    assert_eq!(with_checksum(whole.clone()), whole, "the test knows the checksum");
    for at in 0..whole.len() - 32 {
        // The memory that Argon2 is asked for: other values cost time, up to the limit.
        if (26..29).contains(&at) {
            continue;
        }
        let mut bytes = whole.clone();
        bytes[at] ^= 0x80;
        std::fs::write(directory.path().join(KEYSTORE_FILE), with_checksum(bytes)).unwrap();
        let opened = open(directory.path());
        assert!(opened.is_err(), "byte {at}");
        if at > 109 {
            assert!(matches!(opened, Err(KeystoreError::Damaged { .. })), "byte {at}: {opened:?}");
        }
    }
}

#[test]
fn an_entry_cannot_be_left_out_or_taken_from_an_older_file() {
    let directory = tempfile::tempdir().unwrap();
    let mut keystore = create(directory.path());
    keystore.put_agent(&ada()).unwrap();
    let older = file(directory.path());
    keystore.put_agent(&AgentSecrets { term: 2, name: "ada".to_owned(), ..ada() }).unwrap();
    let newer = file(directory.path());
    assert_eq!(older.len(), newer.len());

    // From docs/spec/keystore.md: the entries start at 113; each of the node's has 45 + 48 bytes, the agent's 45 + 72 + 3 + 16.
    let (agent, after) = (113 + 2 * 93, 113 + 2 * 93 + 45 + 72 + 3 + 16);
    let mixed = [&newer[..agent], &older[agent..after], &newer[after..]].concat();
    assert_ne!(mixed, newer);
    std::fs::write(directory.path().join(KEYSTORE_FILE), with_checksum(mixed)).unwrap();
    let opened = open(directory.path());
    assert!(matches!(&opened, Err(KeystoreError::Damaged { detail, .. }) if detail.contains("exchanged")), "{opened:?}");

    let mut without = [&newer[..agent], &newer[newer.len() - 40 - 32..]].concat();
    without[109..113].copy_from_slice(&2_u32.to_le_bytes());
    std::fs::write(directory.path().join(KEYSTORE_FILE), with_checksum(without)).unwrap();
    let opened = open(directory.path());
    assert!(matches!(&opened, Err(KeystoreError::Damaged { detail, .. }) if detail.contains("exchanged")), "{opened:?}");
}

#[test]
fn a_file_that_asks_for_too_much_memory_is_refused_before_it_gets_any() {
    let directory = tempfile::tempdir().unwrap();
    create(directory.path());
    let mut bytes = file(directory.path());
    bytes[25..29].copy_from_slice(&u32::MAX.to_le_bytes());
    std::fs::write(directory.path().join(KEYSTORE_FILE), with_checksum(bytes)).unwrap();
    let error = open(directory.path()).unwrap_err();
    assert!(matches!(error, KeystoreError::Cost(_)), "{error}");
}

#[test]
fn no_file_has_a_secret_or_a_name_in_the_clear() {
    let directory = tempfile::tempdir().unwrap();
    let mut keystore = create(directory.path());
    let mut secrets: Vec<Vec<u8>> = vec![keystore.node_seed().to_vec(), keystore.node_key().to_vec(), passphrase().expose().into()];
    for mut agent in [ada(), bob()] {
        agent.name = format!("{}-whose-name-is-nobodys-business", agent.name);
        keystore.put_agent(&agent).unwrap();
        secrets.extend([agent.root.to_vec(), agent.behaviour_seed.to_vec(), agent.name.clone().into(), agent.agent.0.to_vec()]);
    }
    let coming = ImportSecrets { name: "cleo-whose-name-is-nobodys-business".to_owned(), ..cleo() };
    keystore.put_import(&coming).unwrap();
    secrets.extend([coming.root.to_vec(), coming.name.clone().into(), coming.agent.0.to_vec()]);
    assert!(!format!("{coming:?}").contains("root secret"));
    let mut seen = vec![file(directory.path())];
    keystore.remove_agent(&format!("{}-whose-name-is-nobodys-business", ada().name)).unwrap();
    keystore.change_passphrase(&Passphrase::new("another".to_owned()), Cost::for_tests_only()).unwrap();
    for entry in std::fs::read_dir(directory.path()).unwrap() {
        seen.push(std::fs::read(entry.unwrap().path()).unwrap());
    }
    assert_eq!(seen.len(), 2, "one file, before and after");
    for secret in &secrets {
        // Half of a secret would be bad enough.
        for part in secret.windows(secret.len().min(12)) {
            assert!(!seen.iter().any(|bytes| contains(bytes, part)), "{}", String::from_utf8_lossy(secret));
        }
    }
    assert!(!format!("{keystore:?} {:?}", keystore.agent("bob-whose-name-is-nobodys-business")).contains("root secret"));
}

#[cfg(unix)]
#[test]
fn its_user_alone_may_read_it() {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("state");
    let mut keystore = create(&state);
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&state), 0o700);
    assert_eq!(mode(&state.join(KEYSTORE_FILE)), 0o600);
    keystore.put_agent(&ada()).unwrap();
    assert_eq!(mode(&state.join(KEYSTORE_FILE)), 0o600);
}

#[test]
fn a_half_written_file_beside_it_is_ignored_and_removed() {
    let directory = tempfile::tempdir().unwrap();
    create(directory.path()).put_agent(&ada()).unwrap();
    let beside = directory.path().join(format!("{KEYSTORE_FILE}.tmp"));
    std::fs::write(&beside, &file(directory.path())[..100]).unwrap();
    let mut keystore = open(directory.path()).unwrap();
    assert!(!beside.exists());
    std::fs::write(&beside, b"again").unwrap();
    keystore.put_agent(&bob()).unwrap();
    assert!(!beside.exists());
    assert_eq!(open(directory.path()).unwrap().agents().len(), 2);
}

#[test]
fn a_change_that_cannot_be_written_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let mut keystore = create(directory.path());
    keystore.put_agent(&ada()).unwrap();
    let beside = directory.path().join(format!("{KEYSTORE_FILE}.tmp"));
    std::fs::create_dir(&beside).unwrap();
    let failed = keystore.put_agent(&bob());
    assert!(matches!(failed, Err(KeystoreError::Io { .. })), "{failed:?}");
    assert_eq!(keystore.agents().len(), 1);
    std::fs::remove_dir(&beside).unwrap();
    keystore.put_agent(&bob()).unwrap();
    assert_eq!(open(directory.path()).unwrap().agents().len(), 2);
}

#[test]
fn what_another_process_wrote_is_not_overwritten() {
    let directory = tempfile::tempdir().unwrap();
    let mut one = create(directory.path());
    let mut other = open(directory.path()).unwrap();
    one.put_agent(&ada()).unwrap();
    assert!(matches!(other.put_agent(&bob()), Err(KeystoreError::Changed(_))));
    assert!(other.agents().is_empty());
    assert_eq!(open(directory.path()).unwrap().agents().len(), 1);
}

#[test]
fn names_are_bounded_and_belong_to_one_agent() {
    let directory = tempfile::tempdir().unwrap();
    let mut keystore = create(directory.path());
    for name in [String::new(), "x".repeat(NAME_BYTES_MAX + 1)] {
        assert!(matches!(keystore.put_agent(&AgentSecrets { name, ..ada() }), Err(KeystoreError::Name(_))));
    }
    keystore.put_agent(&AgentSecrets { name: "x".repeat(NAME_BYTES_MAX), ..ada() }).unwrap();
    keystore.put_agent(&ada()).unwrap();
    let taken = keystore.put_agent(&AgentSecrets { name: "ada".to_owned(), ..bob() });
    assert!(matches!(taken, Err(KeystoreError::NameTaken(_))), "{taken:?}");
    assert_eq!(open(directory.path()).unwrap().agent("ada").unwrap(), ada());
}

/// RFC 9106 has vectors for Argon2id; this one ties passphrase, salt, parameters and output length together as we use them. The value is
/// the reference C implementation's, by way of Python's argon2-cffi: `hash_secret_raw(.., 3, 65536, 1, 32, Type.ID, 19)`.
#[test]
fn the_standard_derivation_is_argon2id() {
    let key = derive_key(&passphrase(), b"0123456789abcdef", Cost::STANDARD).unwrap();
    assert_eq!(data_encoding::HEXLOWER.encode(key.as_slice()), "94c86f541abdb3d9aabfea59aa03963549483e9c0b1a79336e76b54cee6c917e");
    let other = derive_key(&passphrase(), &[0; SALT_BYTES], Cost::STANDARD).unwrap();
    assert_ne!(key, other);
}

/// A file written by format 1 opens for ever.
#[test]
fn a_file_of_format_1_opens() {
    let directory = tempfile::tempdir().unwrap();
    let bytes = data_encoding::HEXLOWER.decode(include_str!("keystore_v1.hex").trim().as_bytes()).unwrap();
    std::fs::write(directory.path().join(KEYSTORE_FILE), bytes).unwrap();
    let keystore = open(directory.path()).unwrap();
    assert_eq!(keystore.agent("ada").unwrap(), ada());
    assert_eq!(keystore.agent("bob").unwrap(), bob());
    let seed = data_encoding::HEXLOWER.encode(keystore.node_seed().as_slice());
    assert_eq!(seed, "439247170b4665d6018653d4c416db178312a569d303164f4e898ef7e35b8953");
}

#[test]
fn a_file_of_format_1_is_written_in_format_2_with_its_first_change() {
    let directory = tempfile::tempdir().unwrap();
    let bytes = data_encoding::HEXLOWER.decode(include_str!("keystore_v1.hex").trim().as_bytes()).unwrap();
    std::fs::write(directory.path().join(KEYSTORE_FILE), &bytes).unwrap();
    let mut keystore = open(directory.path()).unwrap();
    assert_eq!(file(directory.path()), bytes, "reading changes nothing");
    assert!(
        keystore.agents().iter().all(|agent| agent.recovery_written),
        "format 1 had no mark, and every birth was answered with the file"
    );
    assert!(keystore.imports().is_empty());
    let node_seed = keystore.node_seed();
    keystore.put_import(&cleo()).unwrap();
    assert_eq!(file(directory.path())[8], 2);
    let keystore = open(directory.path()).unwrap();
    assert_eq!((keystore.node_seed(), keystore.imports()), (node_seed, vec![cleo()]));
    assert_eq!((keystore.agent("ada").unwrap(), keystore.agent("bob").unwrap()), (ada(), bob()));
}

/// A file written by format 2 opens for ever: with an agent that was born here, one that came, and one on its way.
#[test]
fn a_file_of_format_2_opens() {
    let directory = tempfile::tempdir().unwrap();
    let bytes = data_encoding::HEXLOWER.decode(include_str!("keystore_v2.hex").trim().as_bytes()).unwrap();
    std::fs::write(directory.path().join(KEYSTORE_FILE), bytes).unwrap();
    let keystore = open(directory.path()).unwrap();
    assert_eq!((keystore.agent("ada").unwrap(), keystore.agent("bob").unwrap(), keystore.imports()), (ada(), bob(), vec![cleo()]));
    assert_eq!(keystore.agents().iter().map(|agent| agent.recovery_written).collect::<Vec<_>>(), [false, true]);
    let seed = data_encoding::HEXLOWER.encode(keystore.node_seed().as_slice());
    assert_eq!(seed, "722cf633388d802c3b69726f674959b65affc7551163b1922411e3c8f6afbdfd");
}

#[test]
fn an_import_is_kept_until_the_agent_lives_here() {
    let directory = tempfile::tempdir().unwrap();
    let mut keystore = create(directory.path());
    keystore.put_import(&cleo()).unwrap();
    drop(keystore);
    let mut keystore = open(directory.path()).unwrap();
    assert_eq!(keystore.imports(), [cleo()]);
    assert!(keystore.agents().is_empty(), "it does not live here");
    assert!(matches!(keystore.agent("cleo"), Err(KeystoreError::NoSuchAgent(_))));
    // Begun again under another name, from another host, it is still one import.
    let again = ImportSecrets { name: "cleo2".to_owned(), from_term: 9, ..cleo() };
    keystore.put_import(&again).unwrap();
    assert_eq!(open(directory.path()).unwrap().imports(), [again]);
    let home = AgentSecrets { name: "cleo2".to_owned(), agent: cleo().agent, term: 10, root: cleo().root, behaviour_seed: [7; 32] };
    keystore.put_agent(&home).unwrap();
    let keystore = open(directory.path()).unwrap();
    assert_eq!((keystore.imports().len(), keystore.agent("cleo2").unwrap()), (0, home));
}

#[test]
fn a_refused_import_leaves_what_was_kept_of_an_earlier_stay() {
    let directory = tempfile::tempdir().unwrap();
    let mut keystore = create(directory.path());
    keystore.put_agent(&ada()).unwrap();
    let back = ImportSecrets { name: "ada-is-back".to_owned(), agent: ada().agent, from_term: 2, root: ada().root };
    keystore.put_import(&back).unwrap();
    let mut keystore = open(directory.path()).unwrap();
    assert_eq!((keystore.imports(), keystore.agent("ada").unwrap()), (vec![back.clone()], ada()));
    keystore.remove_import(&ada().agent).unwrap();
    keystore.remove_import(&ada().agent).unwrap();
    let mut keystore = open(directory.path()).unwrap();
    assert_eq!((keystore.imports().len(), keystore.agent("ada").unwrap()), (0, ada()));
    // Not refused, it takes the earlier stay's place.
    keystore.put_import(&back).unwrap();
    keystore.put_agent(&AgentSecrets { name: back.name.clone(), term: 3, ..ada() }).unwrap();
    let keystore = open(directory.path()).unwrap();
    let agents: Vec<_> = keystore.agents().into_iter().map(|agent| (agent.name, agent.term)).collect();
    assert_eq!((agents, keystore.imports().len()), (vec![("ada-is-back".to_owned(), 3)], 0));
}

#[test]
fn an_agent_on_its_way_has_its_name() {
    let directory = tempfile::tempdir().unwrap();
    let mut keystore = create(directory.path());
    keystore.put_agent(&ada()).unwrap();
    let taken = keystore.put_import(&ImportSecrets { name: "ada".to_owned(), ..cleo() });
    assert!(matches!(taken, Err(KeystoreError::NameTaken(_))), "{taken:?}");
    keystore.put_import(&cleo()).unwrap();
    let taken = keystore.put_agent(&AgentSecrets { name: "cleo".to_owned(), ..bob() });
    assert!(matches!(taken, Err(KeystoreError::NameTaken(_))), "{taken:?}");
    let taken = keystore.put_import(&ImportSecrets { name: cleo().name.clone(), agent: bob().agent, ..cleo() });
    assert!(matches!(taken, Err(KeystoreError::NameTaken(_))), "{taken:?}");
    assert_eq!(open(directory.path()).unwrap().imports(), [cleo()]);
}

#[test]
fn who_was_born_here_is_marked_until_the_recovery_file_is_written() {
    let directory = tempfile::tempdir().unwrap();
    let mut keystore = create(directory.path());
    keystore.put_born(&ada()).unwrap();
    keystore.put_agent(&bob()).unwrap();
    let written = |keystore: &Keystore| keystore.agents().iter().map(|agent| agent.recovery_written).collect::<Vec<_>>();
    assert_eq!(written(&keystore), [false, true]);
    let mut keystore = open(directory.path()).unwrap();
    assert_eq!(written(&keystore), [false, true]);
    keystore.recovery_written(&ada().agent).unwrap();
    assert_eq!((written(&keystore), written(&open(directory.path()).unwrap())), (vec![true, true], vec![true, true]));
    assert!(matches!(keystore.recovery_written(&cleo().agent), Err(KeystoreError::NoSuchAgent(_))));
    // Whoever comes back from a recovery file has one.
    keystore.put_born(&AgentSecrets { name: "eve".to_owned(), agent: OwnerKey([0xee; 32]), ..ada() }).unwrap();
    keystore.put_agent(&AgentSecrets { name: "eva".to_owned(), agent: OwnerKey([0xee; 32]), term: 2, ..ada() }).unwrap();
    assert_eq!(written(&open(directory.path()).unwrap()), [true, true, true]);
}

/// Writes the file that [`a_file_of_format_2_opens`] reads. Run it by hand, once for a new format.
#[test]
#[ignore = "makes a golden file: cargo test -p persona --test keystore -- --ignored make_golden_file"]
fn make_golden_file() {
    let directory = tempfile::tempdir().unwrap();
    let mut keystore = create(directory.path());
    keystore.put_born(&ada()).unwrap();
    keystore.put_agent(&bob()).unwrap();
    keystore.put_import(&cleo()).unwrap();
    println!("seed {}", data_encoding::HEXLOWER.encode(keystore.node_seed().as_slice()));
    println!("file {}", data_encoding::HEXLOWER.encode(&file(directory.path())));
}
