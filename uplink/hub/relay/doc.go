// Package relay keeps a fleet's records in an Apache Kafka cluster (4.0 or newer) instead
// of on the hub's own disk.
//
//	r, err := relay.Open(ctx, cfg)       // checks the cluster, makes the system's topics
//	r.Append(ctx, origin, batches, done) // done after the commit
//	r.Close()
//
// A fixed number of shards share the nodes. Each shard owns one partition of the compacted
// progress topic and its share of the partitions of every other topic, and writes records
// and progress in one transaction. A consumer group on the progress topic says which hub
// has which shard; what makes a second owner harmless is InitProducerID, which fences the
// first. After any doubt all state of a shard is dropped and read again from the cluster.
//
// Consumers read the cluster with isolation.level=read_committed.
//
// Import rule: it knows storage/record and uplink; the hub imports it, not the other way round.
package relay
