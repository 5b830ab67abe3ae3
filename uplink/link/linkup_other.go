//go:build !linux

package link

import (
	"context"
	"errors"
)

// WatchLinkUp is for Linux only: elsewhere probes find a link that came back.
func WatchLinkUp(context.Context, func()) error {
	return errors.New("watching the network is implemented for Linux only")
}
