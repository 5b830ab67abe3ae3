// Package storagetest is the crash laboratory of package storage: a file layer
// that can lose power, fail on demand and lie, an oracle that reads a log
// directory without using storage's own decoder, and a model of slices to compare
// with.
//
// [CrashFS] implements [storage.FS] over a real directory. It forwards every call
// and remembers, beside it, what a disk would still hold after a power cut: of
// each file the content at its last fsync, of each directory the entries at its
// last fsync, and the ordered list of entry changes since. [CrashFS.Image] writes
// into a new directory one state, chosen by a seed, that the disk may be left in:
//
//   - bytes written since the last fsync of their file are kept, dropped, torn at
//     any byte or at a 512-byte sector, kept sector by sector in any order, or
//     replaced by zeros or garbage;
//   - entries created, renamed or removed since the last fsync of their directory
//     are kept, lost, kept up to some point (a journaling file system) or kept in
//     any subset (btrfs, where a stale name can come back).
//
// # What is known about tidwall/wal's own files
//
// The library under the log makes its own system calls, which no file layer of ours
// sees. CrashFS learns of them by looking at the directory, and believes only what
// the library certainly did:
//
//   - a segment that is followed by a later one was fsynced whole, because the
//     library fsyncs the old segment before it creates the next one;
//   - a truncation at the front was: temporary file written and fsynced, renamed to
//     .START, old segments removed, .START renamed to its final name; no directory
//     fsync. CrashFS replays that sequence as separate entry changes, so that an
//     image can stop in the middle of it.
//
// Everything else the library wrote is lost unless an fsync went through CrashFS.
//
// CrashFS does not issue real fsyncs: thousands of power cuts run in seconds. It says
// nothing about what a real file system or card does; the block-level recorder does.
package storagetest
