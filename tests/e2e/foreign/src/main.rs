//! `persona-foreign ADDRESS MESH KAD_KEY`: joins a mesh by one address, resolves a section and says what its certificate proves.
#![allow(clippy::disallowed_methods, reason = "a command line of its own")]

use std::{error::Error, process::ExitCode, time::Duration};

use data_encoding::HEXLOWER;
use persona_foreign::{Client, gossip::did_of};

const PATIENCE: Duration = Duration::from_secs(10);

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [address, mesh, record_key] = arguments.as_slice() else {
        return Err("say: persona-foreign ADDRESS MESH KAD_KEY, with an address that ends in /p2p/PEER_ID".into());
    };
    let mut client = Client::join(mesh, &address.parse()?, PATIENCE).await?;
    eprintln!("{} members are connected", client.members().len());
    let resolved = client.resolve(record_key.as_bytes()).await?;
    for (peer, error) in &resolved.refused {
        eprintln!("{peer}: {error}");
    }
    let proven = resolved.newest.ok_or("no peer proved anything about this section; is the key right?")?;
    let [n, k, f] = proven.manifest.shape;
    println!("manifest_hash {}", HEXLOWER.encode(&proven.manifest_hash));
    println!("owner {}", did_of(&proven.manifest.owner));
    println!("version {} {}", proven.manifest.version.term, proven.manifest.version.seq);
    println!("shape n={n} k={k} f={f}");
    println!("acks {}", proven.acks);
    println!("served_by {}", resolved.by.len());
    Ok(())
}
