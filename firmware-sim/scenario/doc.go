// Package scenario holds the end-to-end tests: devices, node and hub together, with a
// ledger kept outside of them.
//
// Three kinds:
//
//   - histories: the production parts of node and hub in one process, in simulated time
//     (testing/synctest), on a simulated link (quic-go's simnet) and on disks that lose
//     power (storage/storagetest). A seed decides about cuts, crashes and disk faults, and
//     about a plan (plan.go): a node that gives up its oldest data, QoS 2, retained
//     messages, wills, a hub whose disk is lost or comes back from a backup, a copy of the
//     node's card in its place or beside it, a node that boots in 1970 or whose clock jumps.
//     A failing seed is printed and runs again with -seed; -with forces features.
//   - long outages: ten simulated minutes at 2,000 records a second.
//   - package kill: the real daemons as processes, killed with SIGKILL while devices send.
//
// The checkers compare with the ledger; they do not sleep, retry or remove doubles. Each
// record that a node made durable is at the hub once, or declared once, by epoch and
// offset, and the sum is that of the devices' own account, exactly.
//
// # What a history is, and is not
//
// edge.Node and hub.Hub are whole; the disk, the UDP socket and the MQTT listener are
// passed in, HTTP and Kafka listeners are off. A file call takes no simulated time: the
// time of a bubble stands still while anybody waits for a mutex, and parts of the node hold
// one during a commit. So power is cut at the n-th change of the disk rather than at a
// time. The order in which goroutines of one instant run is the scheduler's: a seed repeats
// the schedule of faults exactly and the interleaving almost always; a seed that failed is
// worth some repetitions (-count).
//
//	go test ./firmware-sim/scenario -run TestHistories -histories 5000 -from 1
//	go test ./firmware-sim/scenario -run TestHistories -seed 17 -logs -v
//	go test ./firmware-sim/scenario -run TestHistories -histories 50 -with evict,clock-jumps
//	go test ./firmware-sim/scenario -run TestLinkDown -v
//	go test ./firmware-sim/scenario/kill -v -kills 200
package scenario
