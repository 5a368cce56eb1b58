#!/usr/bin/env bash
# A personality outlives its machines: the story of `persona demo`, by hand.
#
# Fourteen nodes run on this machine, each a process with a directory of its own. An agent is born on one of them. We kill its host and three
# more that hold parts of it, bring it back on another node from its recovery file alone, and compare what came back with what was born.
#
#   PERSONA=target/release/persona docs/tutorial.sh
#
# It needs bash and the binary (default: `persona` on the PATH), and leaves nothing behind.
set -euo pipefail

persona=$(command -v "${PERSONA:-persona}") || { echo "no persona binary: build it, and name it in PERSONA" >&2; exit 2; }
case $persona in /*) ;; *) persona=$PWD/$persona ;; esac
examples=$(cd "$(dirname "${BASH_SOURCE[0]}")/examples" && pwd)
work=$(mktemp -d)
nodes=14

# Every node seals its secrets with a passphrase. Here it is the same for all, and comes from the environment; never from an argument.
export PERSONA_PASSPHRASE='for the length of a tutorial'
unset PERSONA_DIR

declare -a pid=() peer=()
cleanup() {
    local one
    for one in "${pid[@]}"; do kill -9 "$one" 2>/dev/null || true; done
    wait 2>/dev/null || true
    chmod -R u+rwX "$work" 2>/dev/null || true
    rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

say() { printf '\n== %s\n' "$*"; }
fail() { printf 'tutorial: %s\n' "$*" >&2; exit 1; }
# `at 3 status` asks node 3: every verb takes --dir, the directory of the node that it speaks to.
at() { local node=$1; shift; "$persona" "$@" --dir "$work/node-$node"; }
# Looks again and again until a command succeeds.
eventually() {
    local deadline=$((SECONDS + 60))
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < deadline)) || fail "waited 60 s for: $*"
        sleep 0.2
    done
}
# Ready means that a node has put a section and read it back; and not alone, that it did so through others.
is_ready() { at "$1" status --json | grep '"ready": *true' >/dev/null; }
is_in_company() { at "$1" status --json | grep '"alone": *false' >/dev/null && is_ready "$1"; }
knows_enough() { local known; known=$(at "$1" status --json | sed -n 's/.*"kad_table": *\([0-9]*\).*/\1/p'); ((known >= 10)); }

start() { # NODE [--join TICKET]
    local node=$1; shift
    "$persona" up --dir "$work/node-$node" --mesh tutorial --listen /ip4/127.0.0.1/tcp/0 --listen /ip4/127.0.0.1/udp/0/quic-v1 "$@" \
        >"$work/node-$node.out" 2>>"$work/node-$node.log" &
    pid[node]=$!
}

say "A mesh: the first node, then thirteen that join it by its ticket"
start 1
eventually is_ready 1
ticket=$(at 1 invite)
echo "ticket: $ticket"
for ((node = 2; node <= nodes; node++)); do
    start "$node" --join "$ticket"
    # A few at a time: opening a keystore is meant to be slow work.
    ((node % 4)) || eventually at "$node" status
done
for ((node = 1; node <= nodes; node++)); do
    eventually is_in_company "$node"
    eventually knows_enough "$node"
    # The peer id is the first word of `status`.
    read -r "peer[node]" _ < <(at "$node" status)
done
at 1 status

say "mira is born on node 2, tomas on node 3"
at 2 agent create mira --role archivist --attributes "$examples/mira.json" --recovery "$work/mira.persona-recovery"
at 3 agent create tomas --role carpenter --attributes "$examples/tomas.json" --recovery "$work/tomas.persona-recovery"
mira=$(at 2 agent list | grep -o 'did:key:[A-Za-z0-9]*')
tomas=$(at 3 agent list | grep -o 'did:key:[A-Za-z0-9]*')
# What was born: her personality, read by quorum, and her own attributes, which must be the file's very bytes.
at 2 personality get mira --output "$work/born"
at 2 personality get mira --attributes | cmp - "$examples/mira.json" || fail "mira was born with other attributes"

say "They talk"
heard() { at "$1" inbox "$2" | grep -F "$3" >/dev/null; }
at 2 send mira "$tomas" 'Tomas, the offcuts are in the tea crate, where nobody looks.'
eventually heard 3 tomas 'where nobody looks.'
at 3 send tomas "$mira" 'Except you and me. Good.'
eventually heard 2 mira 'Except you and me.'

say "Where mira is kept: ten holders, none of them her own host; any three give her back"
fully_placed() { [[ $(at 2 analyze mira/core | grep -c 'has its shard') == 10 ]]; }
eventually fully_placed
at 2 analyze mira/core | tee "$work/analysis"
# A relationship is put within a second of a change; its section must be stored before its host dies.
all_stored() { at 2 agent show mira --json | grep '"relationship/' >/dev/null && ! at 2 agent show mira --json | grep -E '"state": *"(pending|stale)"' >/dev/null; }
eventually all_stored

say "Her host dies, and three of her core's holders with it: kill -9, all at once"
# Her bond with tomas has seven holders and reads fresh with two of them lost: no third is killed, if we can help it.
bonds=("mira/keys/$tomas" "mira/relationship/$tomas")
declare -A holds=()
for bond in "${bonds[@]}"; do
    for holder in $(at 2 analyze "$bond" | grep -o '12D3[A-Za-z0-9]*'); do holds["$bond $holder"]=1; done
done
victims=(2)
bears() { # NODE: whether every bond still bears the loss of this node too
    local bond lost node
    for bond in "${bonds[@]}"; do
        lost=0
        for node in "${victims[@]}" "$1"; do lost=$((lost + ${holds["$bond ${peer[node]}"]:-0})); done
        ((lost <= 2)) || return 1
    done
}
anyone() { true; }
for wanted in bears anyone; do
    for holder in $(grep 'has its shard' "$work/analysis" | grep -o '12D3[A-Za-z0-9]*'); do
        for ((node = 1; node <= nodes; node++)); do
            # Tomas lives on node 3 and must be left to judge.
            [[ ${peer[node]} == "$holder" && $node != 3 && " ${victims[*]} " != *" $node "* && ${#victims[@]} -lt 4 ]] || continue
            if "$wanted" "$node"; then victims+=("$node"); fi
        done
    done
done
((${#victims[@]} == 4)) || fail "found only ${#victims[@]} nodes to kill"
doomed=()
for node in "${victims[@]}"; do doomed+=("${pid[node]}"); done
kill -9 "${doomed[@]}"
wait "${doomed[@]}" 2>/dev/null || true
echo "killed: nodes ${victims[*]}"
# And her host's disk is gone.
mv "$work/node-2" "$work/gone" && chmod 000 "$work/gone"

say "On another node, with nothing but the recovery file"
home=0
for ((node = nodes; node > 3; node--)); do
    [[ " ${victims[*]} " == *" $node "* ]] || { home=$node; break; }
done
at "$home" agent import "$work/mira.persona-recovery"
at "$home" personality get mira --output "$work/returned"
cmp "$work/born" "$work/returned" || fail "what came back is not what was born"
at "$home" personality get mira --attributes | cmp - "$examples/mira.json" || fail "her attributes are not what they were"
echo "node $home: mira is byte for byte herself"

say "And tomas knows her"
at "$home" send mira "$tomas" 'It is me. I still know where the offcuts are.'
eventually heard 3 tomas 'I still know where the offcuts are.'
at 3 inbox tomas

say "The three holders return on their old directories, and everything reads"
ticket=$(at "$home" invite)
for node in "${victims[@]:1}"; do start "$node" --join "$ticket"; done
for node in "${victims[@]:1}"; do eventually is_in_company "$node"; done
at "$home" personality get mira --mode atomic | cmp - "$work/born" || fail "after the restart she is not who she was"
echo "A personality outlived its machines."
