// Package scenario holds the end-to-end tests: devices, node and hub together, with a
// ledger kept outside of them.
//
// Three kinds:
//
//   - histories: the production parts of node and hub in one process, in simulated time
//     (testing/synctest), on a simulated link (quic-go's simnet) and on disks that lose
//     power (storage/storagetest). A seed decides about cuts, crashes and disk faults;
//     a failing seed is printed and runs again with -seed.
//   - long outages: ten simulated minutes at 2,000 records a second.
//   - package kill: the real daemons as processes, killed with SIGKILL while devices send.
//
// The checkers compare with the ledger; they do not sleep, retry or remove doubles.
package scenario
