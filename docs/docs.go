// Package docs holds pages of the documentation that a program shows parts of.
package docs

import "embed"

// Runbooks has the pages of the folder runbooks: what to do first, for each check that fails.
//
//go:embed runbooks/*.md
var Runbooks embed.FS
