package x509

import (
	"context"
	"net/http"
	"time"

	"github.com/naru-platform/naru/service_platform/x509/authority"
)

// CAStatus is the answer of GET /api/v1/ca/status.
type CAStatus struct {
	Root       CACert         `json:"root"`
	RootKey    bool           `json:"root_key"`      // is in the CA's directory
	Exported   bool           `json:"root_exported"` // the root's key was given out by export-root
	Issuing    CACert         `json:"issuing"`
	Trusted    []CACert       `json:"trusted"` // every root of the platform's own
	Registered []RegisteredCA `json:"registered"`
}

// CACert is a CA's certificate in short.
type CACert struct {
	Name        string    `json:"name"`
	Fingerprint string    `json:"fingerprint"`
	NotAfter    time.Time `json:"not_after"`
}

func (s *service) caStatus(o *opened, w http.ResponseWriter, r *http.Request) error {
	mine := o.authority.Bundle()
	all, err := o.trusted(r.Context())
	if err != nil {
		return err
	}
	st := CAStatus{Root: CACert{name(mine.Roots[0]), authority.Fingerprint(mine.Roots[0].Raw), mine.Roots[0].NotAfter}, RootKey: o.authority.RootKey(), Exported: o.authority.RootExported(),
		Issuing: CACert{name(mine.Issuing[0]), authority.Fingerprint(mine.Issuing[0].Raw), mine.Issuing[0].NotAfter}}
	for _, c := range all.Roots {
		st.Trusted = append(st.Trusted, CACert{name(c), authority.Fingerprint(c.Raw), c.NotAfter})
	}
	if st.Registered, err = o.cas.List(r.Context()); err != nil {
		return err
	}
	return answer(w, http.StatusOK, st)
}

// RootKey is the request and the answer of POST /api/v1/ca/root/{export,remove,restore}. The key travels encrypted only.
type RootKey struct {
	Passphrase  Password `json:"passphrase,omitempty"`
	Certificate string   `json:"certificate,omitempty"`
	Key         string   `json:"key,omitempty"`         // PEM, ENCRYPTED PRIVATE KEY
	Fingerprint string   `json:"fingerprint,omitempty"` // the root certificate's
	ForGood     bool     `json:"for_good,omitempty"`    // remove it although it was never exported
}

func (s *service) exportRoot(o *opened, w http.ResponseWriter, r *http.Request) error {
	var in RootKey
	if err := read(w, r, &in); err != nil {
		return err
	}
	cert, key, err := o.authority.ExportRoot(string(in.Passphrase))
	if err != nil {
		return err
	}
	s.env.Log.Info("the root's key was exported, encrypted", "root", authority.Fingerprint(o.authority.Bundle().Roots[0].Raw))
	w.Header().Set("Cache-Control", "no-store")
	return answer(w, http.StatusOK, RootKey{Certificate: string(cert), Key: string(key), Fingerprint: authority.Fingerprint(o.authority.Bundle().Roots[0].Raw)})
}

func (s *service) removeRoot(o *opened, w http.ResponseWriter, r *http.Request) error {
	var in RootKey
	if err := read(w, r, &in); err != nil {
		return err
	}
	if root := authority.Fingerprint(o.authority.Bundle().Roots[0].Raw); Means(in.Fingerprint, root) {
		in.Fingerprint = root
	}
	if err := o.authority.RemoveRoot(in.Fingerprint, in.ForGood); err != nil {
		return err
	}
	s.env.Log.Info("the root's key was removed", "root", in.Fingerprint, "exported", o.authority.RootExported())
	return s.caStatus(o, w, r)
}

func (s *service) restoreRoot(o *opened, w http.ResponseWriter, r *http.Request) error {
	var in RootKey
	if err := read(w, r, &in); err != nil {
		return err
	}
	if err := o.authority.RestoreRoot([]byte(in.Key), string(in.Passphrase)); err != nil {
		return err
	}
	s.env.Log.Info("the root's key was put back")
	if err := s.renew(context.WithoutCancel(r.Context()), o); err != nil { // whoever asked may be gone; it is to be published
		return err
	}
	return s.caStatus(o, w, r)
}

func (s *service) rollover(o *opened, w http.ResponseWriter, r *http.Request) error {
	ctx := context.WithoutCancel(r.Context()) // as above
	err := o.authority.Rollover(func(next authority.Bundle) error { return s.publish(ctx, o, &next) })
	if err == nil {
		err = s.renew(ctx, o)
	}
	if err != nil {
		return err
	}
	s.env.Log.Info("a new root and issuing CA are in use; those before stay trusted", "root", authority.Fingerprint(o.authority.Bundle().Roots[0].Raw))
	return s.caStatus(o, w, r)
}

func (s *service) retireRoot(o *opened, w http.ResponseWriter, r *http.Request) error {
	var in RootKey
	if err := read(w, r, &in); err != nil {
		return err
	}
	all, err := o.trusted(r.Context())
	if err != nil {
		return err
	}
	if in.Fingerprint, err = complete(in.Fingerprint, append(fingerprints(all.Roots), all.Retired...), ErrUnknownCA); err != nil {
		return err
	}
	if err := o.retire(context.WithoutCancel(r.Context()), in.Fingerprint); err != nil {
		return err
	}
	s.env.Log.Info("a root is trusted no more", "root", in.Fingerprint)
	return s.caStatus(o, w, r)
}

func (s *service) registrationCode(o *opened, w http.ResponseWriter, r *http.Request) error {
	code, expires, err := o.cas.Code(r.Context())
	if err != nil {
		return err
	}
	return answer(w, http.StatusCreated, map[string]any{"code": code, "expires": expires})
}

// CARegistration is the request of POST /api/v1/ca/registered.
type CARegistration struct {
	Certificate string `json:"certificate"`        // PEM
	Proof       string `json:"proof"`              // PEM: signed by the CA, its common name a registration code
	Template    string `json:"template,omitempty"` // registers unknown devices of this CA when they first come
	By          string `json:"by,omitempty"`
}

func (s *service) registerCA(o *opened, w http.ResponseWriter, r *http.Request) error {
	var in CARegistration
	if err := read(w, r, &in); err != nil {
		return err
	}
	if err := firstOf(checkText("by", in.By), checkText("template", in.Template)); err != nil {
		return bad(err)
	}
	if err := o.checkTemplate(in.Template); err != nil {
		return err
	}
	if err := s.checkTemplatePolicy(r.Context(), o, in.Template); err != nil {
		return err
	}
	ca, err := o.cas.Register(r.Context(), []byte(in.Certificate), []byte(in.Proof), in.Template, by(in.By))
	if err != nil {
		return err
	}
	s.env.Log.Info("a CA was registered", "ca", ca.Name, "fingerprint", ca.Fingerprint, "template", ca.Template, "by", ca.By)
	return answer(w, http.StatusCreated, ca)
}

func (s *service) registeredCAs(o *opened, w http.ResponseWriter, r *http.Request) error {
	list, err := o.cas.List(r.Context())
	if err != nil {
		return err
	}
	return answer(w, http.StatusOK, list)
}

func (s *service) disableCA(off bool) func(*opened, http.ResponseWriter, *http.Request) error {
	return func(o *opened, w http.ResponseWriter, r *http.Request) error {
		fingerprint, err := o.cas.meant(r.Context(), r.PathValue("fingerprint"))
		if err != nil {
			return err
		}
		ca, err := o.cas.Disable(r.Context(), fingerprint, off)
		if err != nil {
			return err
		}
		s.env.Log.Info("a registered CA was switched", "ca", ca.Name, "fingerprint", ca.Fingerprint, "disabled", off)
		return answer(w, http.StatusOK, ca)
	}
}

func (s *service) removeCA(o *opened, w http.ResponseWriter, r *http.Request) error {
	fingerprint, err := o.cas.meant(r.Context(), r.PathValue("fingerprint"))
	if err != nil {
		return err
	}
	ca, err := o.cas.Remove(r.Context(), fingerprint)
	if err != nil {
		return err
	}
	s.env.Log.Info("a registered CA was removed", "ca", ca.Name, "fingerprint", ca.Fingerprint)
	w.WriteHeader(http.StatusNoContent)
	return nil
}
