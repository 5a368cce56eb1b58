//! Versions that are given up (docs/spec/quorum.md#a-version-that-is-given-up).
//!
//! A holder that has not acked a version promises its owner never to; `2f + 1` such promises are an abort certificate; and whoever is shown one
//! drops what it proves dead.

use persona_fragments::{
    AbortedVersion, AckLeaf, CertificateError, SectionKey, Signature, Signer, Verifier, Version, certificate::AbortWire,
    manifest::ManifestWire, sign_batch, wire,
};

use super::{CallId, Floor, Holder, HolderOut, Then, Why, expiry_ms, prepared_key, refused};
use crate::{
    message::{PreparedWire, Refusal, Response},
    storage::{Table, Write},
    time::Now,
};

/// Versions of one section that are given up without ever having been stored here, and remembered until they expire. When there are more, an
/// order to promise is answered `Busy`, and an abort certificate is taken note of no more: nothing depends on that.
const GIVEN_UP_MAX: usize = 64;

impl Holder {
    #[allow(clippy::too_many_arguments, reason = "a request and what it takes to judge it")]
    pub(super) fn never(
        &mut self,
        call: CallId,
        manifest: ManifestWire,
        index: u8,
        order: &Signature,
        now: Now,
        signer: &dyn Signer,
        verifier: &dyn Verifier,
        out: &mut Vec<HolderOut>,
    ) -> Result<Option<Response>, Response> {
        let manifest = self.as_holder(manifest, index, verifier)?;
        if !manifest.verify_never_order(order, verifier) {
            return Err(refused(Refusal::BadOrder));
        }
        self.compare(&manifest, out);
        self.manifest_in_time(&manifest, now)?;
        let (key, version) = (manifest.key, manifest.version);
        if let Some(section) = self.sections.get(&key) {
            if let Some(head) = section.head.as_ref().filter(|head| head.head.manifest.version >= version) {
                return Err(Response::Superseded { head: head.head.to_wire() });
            }
            if section.heads().any(|head| head.head.manifest.version >= version) {
                return Err(Response::Busy); // nothing is said before it is durable
            }
            match section.versions.get(&version).map(|stored| stored.coming) {
                Some(None) => return Err(self.prepared(&key, &version, signer)),
                Some(Some(id)) => {
                    self.then(id, Then::Prepared { call, key, version });
                    return Ok(None);
                }
                None => {}
            }
            match section.floors.get(&version).map(|floor| (floor.why, floor.coming)) {
                Some((Why::Never(_), None)) => return Err(self.promise(&key, &version, index, signer)),
                Some((Why::Never(_), Some(id))) => {
                    self.then(id, Then::Promise { call, key, version, index });
                    return Ok(None);
                }
                Some((Why::Aborted, _)) => return Err(refused(Refusal::Aborted)),
                Some((Why::Dropped, _)) => return Err(refused(Refusal::Expired)),
                Some((Why::Learnt, _)) | None => {}
            }
        }
        if self.may_have_seen(&manifest) {
            self.ask_recovery(&key, None, Some(&manifest), now, out);
            return Err(Response::Recovering); // it may have acked it
        }
        self.room_to_give_up(&key)?;
        let floor = Floor::new(manifest.hash(), expiry_ms(&manifest), Why::Never(index));
        let id = self.give_up(key, version, floor, out);
        self.then(id, Then::Promise { call, key, version, index });
        Ok(None)
    }

    pub(super) fn abort(
        &mut self,
        call: CallId,
        aborted: AbortWire,
        now: Now,
        verifier: &dyn Verifier,
        out: &mut Vec<HolderOut>,
    ) -> Result<Option<Response>, Response> {
        let AbortedVersion { manifest, .. } = AbortedVersion::verify(aborted, verifier).map_err(|error| match error {
            CertificateError::Manifest(_) => refused(Refusal::BadManifest),
            _ => refused(Refusal::BadCertificate),
        })?;
        let (key, version, hash, until_ms) = (manifest.key, manifest.version, manifest.hash(), expiry_ms(&manifest));
        self.compare(&manifest, out);
        let section = self.sections.get(&key);
        if let Some(head) = section.and_then(|section| section.heads().find(|head| head.head.manifest.hash() == hash)) {
            return Err(Response::Superseded { head: head.head.to_wire() });
        }
        match section.and_then(|section| section.versions.get(&version)).map(|stored| &stored.manifest) {
            Some(stored) if stored.hash() == hash => {
                let mut writes = Vec::new();
                self.drop_version(&key, &version, Why::Aborted, now, &mut writes);
                let id = self.persist(writes, out);
                self.then(id, Then::Aborted { call });
                self.reschedule(&key);
                return Ok(None);
            }
            Some(other) => return Err(Response::Conflict { manifest: other.wire().clone() }),
            None => {}
        }
        let known = section.and_then(|section| section.floors.get(&version)).is_some_and(|floor| floor.why != Why::Learnt);
        let mine = manifest.holders.contains(&self.me) && self.manifest_in_time(&manifest, now).is_ok();
        if known || !mine || self.room_to_give_up(&key).is_err() {
            return Err(Response::Aborted);
        }
        let id = self.give_up(key, version, Floor::new(hash, until_ms, Why::Aborted), out);
        self.then(id, Then::Aborted { call });
        Ok(None)
    }

    fn room_to_give_up(&self, key: &SectionKey) -> Result<(), Response> {
        let Some(section) = self.sections.get(key) else {
            return if self.sections.len() < self.limits.sections_max { Ok(()) } else { Err(refused(Refusal::Full)) };
        };
        let given_up = section.floors.values().filter(|floor| matches!(floor.why, Why::Never(_) | Why::Aborted)).count();
        if given_up < GIVEN_UP_MAX { Ok(()) } else { Err(Response::Busy) }
    }

    fn give_up(&mut self, key: SectionKey, version: Version, floor: Floor, out: &mut Vec<HolderOut>) -> crate::PersistId {
        let write = Write::set(Table::Prepared, prepared_key(&key, &version), wire::encode(&floor.record()));
        let id = self.persist(vec![write], out);
        self.sections.entry(key).or_default().floors.insert(version, Floor { coming: Some(id), ..floor });
        self.then(id, Then::Floored { key, version, id });
        self.reschedule(&key);
        id
    }

    /// The signed promise, once it is durable. Whatever place another manifest of this version gives this node: it acks none of them.
    pub(super) fn promise(&mut self, key: &SectionKey, version: &Version, index: u8, signer: &dyn Signer) -> Response {
        let floor = self.sections.get(key).and_then(|section| section.floors.get(version));
        let Some(Why::Never(_)) = floor.map(|floor| floor.why) else { return refused(Refusal::Expired) };
        let never = sign_batch(&[AckLeaf::never(*key, *version, index)], signer).remove(0);
        Response::Promised { never }
    }

    /// What was acked of a version, with the ack.
    pub(super) fn prepared(&mut self, key: &SectionKey, version: &Version, signer: &dyn Signer) -> Response {
        match self.ack(key, version, signer) {
            Response::Acked { ack } => {
                let manifest = self.sections[key].versions[version].manifest.wire().clone();
                Response::Prepared(PreparedWire { manifest, ack })
            }
            other => other,
        }
    }
}
