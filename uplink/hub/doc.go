// Package hub is the central daemon: nodes replicate to it over QUIC, it keeps
// what they send, and consumers read it by the Kafka protocol, HTTP and in a
// browser.
//
//	h, err := hub.New(cfg)     // opens the store and the sockets
//	err = h.Run(ctx)           // serves until ctx ends, then stops in order
//
// What has arrived is decided by one thing: the progress that Central stores
// in the same step as the records. See Embedded for how.
//
// Import rule: composer. It uses storage, uplink, uplink/link and devices; none
// of them knows it, and it does not know edge.
package hub
