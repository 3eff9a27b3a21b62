// Package built knows which naru this is.
package built

import "runtime/debug"

// version is set by the linker; a binary built without it says what the module's build information knows.
var version = ""

// Version is what this binary was built from, as a release or a commit is called; "unknown" where nothing says it.
func Version() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "unknown"
}
