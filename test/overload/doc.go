// Package overload shows that stock clients go to another node where one has as
// many requests as it takes.
package overload
