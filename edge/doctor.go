package edge

import (
	"errors"
	"fmt"
	"net/url"

	"tailrace/uplink/link"
)

// Path is how this configuration reaches its hub, for link.Diagnose: its store is not
// opened, and a node that runs is not disturbed.
func (c Config) Path() (link.ClientConfig, error) {
	if len(c.Uplink.Hubs) == 0 {
		return link.ClientConfig{}, errors.New("the configuration names no hub under uplink.hubs")
	}
	c = c.withDefaults()
	t, err := c.loadUplink()
	if err != nil {
		return link.ClientConfig{}, err
	}
	proxy, err := c.Uplink.proxy()
	return link.ClientConfig{NodeID: c.Node, Hubs: c.Uplink.Hubs, Fallback: c.Uplink.Fallback, Proxy: proxy, TLS: t, PacketConn: c.PacketConn}, err
}

// proxy is the proxy of the fallback, nil when there is none.
func (c *UplinkConfig) proxy() (*url.URL, error) {
	if c.Proxy == "" {
		return nil, nil
	}
	u, err := url.Parse(c.Proxy)
	if err != nil {
		return nil, fmt.Errorf("uplink.proxy: %w", err)
	}
	return u, nil
}
