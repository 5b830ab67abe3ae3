//go:build !linux

package edge

func mediumOf(string) medium { return medium{Kind: "unknown"} }

func freeBytes(string) (int64, bool) { return 0, false }

func amplifying(string) string { return "" }

func volatile(string) string { return "" }
