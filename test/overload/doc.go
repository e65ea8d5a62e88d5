// Package overload shows that stock clients try another node if one node already serves as many requests as it
// accepts.
package overload
