package kafka

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// api is one entry of the protocol: a key, the versions, the handler.
type api struct {
	key    int16
	name   string
	min    int16 // lowest advertised
	max    int16 // highest advertised and accepted
	accept int16 // lowest accepted; below it the handler answers an error
	// handle answers one request. It runs on the connection's goroutine; an
	// error closes the connection. The frame's bytes are its own only until it
	// returns. Exactly one of handle and raw is set: raw decodes by itself.
	handle func(ctx context.Context, c *conn, req kmsg.Request) (kmsg.Response, error)
	raw    func(ctx context.Context, c *conn, h header, body []byte) error
}

// table is the protocol we speak; ApiVersions is built from it. Adding a key is
// adding a file, a line here, and its flexible versions' layout (flexible.go).
func table() []api {
	return []api{
		produceAPI,                 // 00
		fetchAPI,                   // 01
		listOffsetsAPI,             // 02
		metadataAPI,                // 03
		offsetCommitAPI,            // 08
		offsetFetchAPI,             // 09
		findCoordinatorAPI,         // 10
		joinGroupAPI,               // 11
		heartbeatAPI,               // 12
		leaveGroupAPI,              // 13
		syncGroupAPI,               // 14
		describeGroupsAPI,          // 15
		listGroupsAPI,              // 16
		saslHandshakeAPI,           // 17
		apiVersionsAPI,             // 18
		createTopicsAPI,            // 19
		deleteTopicsAPI,            // 20
		deleteRecordsAPI,           // 21
		initProducerIDAPI,          // 22
		offsetForLeaderEpochAPI,    // 23
		describeACLsAPI,            // 29
		describeConfigsAPI,         // 32
		saslAuthenticateAPI,        // 36
		createPartitionsAPI,        // 37
		deleteGroupsAPI,            // 42
		incrementalAlterConfigsAPI, // 44
		describeClusterAPI,         // 60
	}
}

// typed adapts a handler of one request type.
func typed[Req kmsg.Request](f func(ctx context.Context, c *conn, req Req) (kmsg.Response, error)) func(context.Context, *conn, kmsg.Request) (kmsg.Response, error) {
	return func(ctx context.Context, c *conn, req kmsg.Request) (kmsg.Response, error) {
		return f(ctx, c, req.(Req))
	}
}
