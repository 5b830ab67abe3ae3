package edge

import "tailrace/storage"

// Store is the node's store, for tests that look inside. Valid once Ready.
func (n *Node) Store() *storage.Store { return n.store }
