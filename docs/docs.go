// Package docs embeds the pages of the documentation whose text a program shows.
package docs

import "embed"

// Runbooks has the pages of the folder runbooks: what to do first, for each check that fails.
//
//go:embed runbooks/*.md
var Runbooks embed.FS
