import java.io.BufferedReader;
import java.io.FileInputStream;
import java.io.InputStreamReader;
import java.security.KeyStore;
import javax.net.ssl.KeyManagerFactory;
import javax.net.ssl.SSLContext;
import javax.net.ssl.SSLParameters;
import javax.net.ssl.SSLSocket;
import javax.net.ssl.TrustManagerFactory;

/** Connects twice with one SSLContext, so that the second may resume, and prints what the server says of each. */
public class TLSClient {
    // TLSClient PORT STORE PASSWORD PROTOCOL SUITE|- KEYSTORE|-
    public static void main(String[] a) throws Exception {
        KeyStore store = KeyStore.getInstance("JKS");
        try (FileInputStream in = new FileInputStream(a[1])) {
            store.load(in, a[2].toCharArray());
        }
        TrustManagerFactory trust = TrustManagerFactory.getInstance("PKIX");
        trust.init(store);
        KeyManagerFactory keys = KeyManagerFactory.getInstance("PKIX");
        if (!a[5].equals("-")) {
            KeyStore own = KeyStore.getInstance("JKS");
            try (FileInputStream in = new FileInputStream(a[5])) {
                own.load(in, a[2].toCharArray());
            }
            keys.init(own, a[2].toCharArray());
        } else {
            keys.init(null, null);
        }
        SSLContext context = SSLContext.getInstance("TLS");
        context.init(keys.getKeyManagers(), trust.getTrustManagers(), null);
        for (int i = 0; i < 2; i++) {
            try (SSLSocket s = (SSLSocket) context.getSocketFactory().createSocket("127.0.0.1", Integer.parseInt(a[0]))) {
                SSLParameters params = s.getSSLParameters();
                params.setEndpointIdentificationAlgorithm("HTTPS");
                s.setSSLParameters(params);
                s.setEnabledProtocols(new String[] {a[3]});
                if (!a[4].equals("-")) {
                    s.setEnabledCipherSuites(new String[] {a[4]});
                }
                String line = new BufferedReader(new InputStreamReader(s.getInputStream())).readLine();
                System.out.println(line);
            } catch (java.io.IOException e) { // SSLException, or the server has hung up
                System.out.println("refused: " + e.getClass().getSimpleName());
            }
        }
    }
}
