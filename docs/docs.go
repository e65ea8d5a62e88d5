// Package docs holds pages of the documentation that a program shows parts of.
package docs

import _ "embed" // for the directives below

// Runbook is the page runbook.md: what to do first, for each check that fails.
//
//go:embed runbook.md
var Runbook string
