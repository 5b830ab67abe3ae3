// Package planted proves that the tests can see: it plants the twelve bugs that the
// promise of the log names, and some beside them, one at a time, and each must make the test
// fail that is there to catch it.
//
// A bug is a row of a table: a file, the text to replace, the new text, and the test that
// must fail. It is laid over the source with go test -overlay, so neither the checkout nor
// the production code knows of it. When the old text is not there any more the test fails:
// the row is to be mended with the code.
//
//	go test ./firmware-sim/scenario/planted -v             two of them, others each commit
//	go test ./firmware-sim/scenario/planted -v -all        every one (make planted)
//	go test ./firmware-sim/scenario/planted -v -bug=order  those whose name contains it
package planted
